"""What this machine has, what it is fast at, and the settings that follow."""

import contextlib
import ctypes
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_emotions.config import ModelConfig

_GIB = 2**30
FAST = 1.3  # bfloat16 is taken where it is at least this much faster than float32
_SHAPE = (1024, 576, 1536)  # rows, inputs and outputs of a product like those of a small model's forward pass
# glibc's mallopt: keep freed memory of up to 32 MiB blocks instead of handing it back to the kernel page by page.
_MALLOPT = ((-3, 32 * 2**20), (-1, 2**31 - 1), (-2, 256 * 2**20))  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD


def _cpu_flags() -> set[str]:
    """The processor's feature names as Linux gives them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())


def cores() -> int:
    """Processor cores that this process may use, a container's quota included."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        allowed = min(allowed, max(1, round(int(quota) / int(period))))
    return allowed


def memory_gb() -> float | None:
    """Memory in GiB that this process may use, a container's limit included; None where it is not known."""
    found: list[int] = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return round(min(found) / _GIB, 1) if found else None


def training_memory_gb() -> float | None:
    """Memory in GiB where dictionaries train: the first CUDA device's, else what this process may use."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.get_device_properties(0).total_memory / _GIB, 1)
    return memory_gb()


def free_disk_gb(folder: Path) -> float:
    """Free disk space in GiB where `folder` lies or will lie."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return round(shutil.disk_usage(there).free / _GIB, 1)


def describe(folder: Path = Path(".")) -> dict[str, Any]:
    """What this machine has: processor features, CUDA, memory and free disk in GiB, torch's threads."""
    import torch

    flags = _cpu_flags()
    gpus = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            gpus.append({"name": card.name, "memory_gb": round(card.total_memory / _GIB, 1)})
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "avx2": "avx2" in flags,
        "avx512": "avx512f" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "vnni": bool({"avx512_vnni", "avx_vnni"} & flags),
        "amx_bf16": "amx_bf16" in flags,
        "amx_int8": "amx_int8" in flags,
        "cuda": gpus,
        "memory_gb": memory_gb(),
        "free_disk_gb": free_disk_gb(folder),
    }


def device() -> Any:
    """The torch device that models and dictionaries run on: the first CUDA device, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds_of(work: Callable[[], object], budget: float, share: float = 0.25) -> float:
    """Seconds that `work` takes, called for about `budget` seconds after a first time: as long as the fastest `share` at most.

    A fast time rather than the median: what else runs here meanwhile is not the machine's doing.
    """
    work()
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[int(share * len(times))]


def _gflops(dtype: Any, where: Any, seconds: float) -> float:
    """GFLOP/s of matrix products of `_SHAPE` in `dtype`, measured for about `seconds`."""
    import torch

    rows, inputs, outputs = _SHAPE
    x_BD = torch.ones(rows, inputs, dtype=dtype, device=where)
    w_OD = torch.ones(outputs, inputs, dtype=dtype, device=where)

    def product() -> None:
        torch.nn.functional.linear(x_BD, w_OD)
        if where.type == "cuda":
            torch.cuda.synchronize()

    return round(2 * rows * inputs * outputs / seconds_of(product, seconds, 0.1) / 1e9, 1)


def measure() -> dict[str, Any]:
    """Measure float32 and bfloat16 matrix products here, within two seconds.

    Returns the device, `fp32_gflops`, `bf16_gflops`, and `fast_bf16`: whether bfloat16 is at least 1.3 times as fast.
    """
    import torch

    where = device()
    with torch.inference_mode():
        fp32 = _gflops(torch.float32, where, 0.7)
        bf16 = _gflops(torch.bfloat16, where, 0.7)
    return {"device": where.type, "fp32_gflops": fp32, "bf16_gflops": bf16, "fast_bf16": bf16 >= FAST * fp32}


def compute_dtype(config: ModelConfig, measured: dict[str, Any] | None = None) -> Any:
    """The torch dtype that the config asks for; for 'auto', bfloat16 where it measures as fast, else float32.

    `measured` is what `measure` returned, where it has been called already.
    """
    import torch

    if config.dtype == "auto":
        return torch.bfloat16 if (measured or measure())["fast_bf16"] else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def _names(facts: dict[str, Any]) -> str:
    names = {"avx2": "AVX2", "avx512": "AVX-512", "avx512_bf16": "AVX-512-BF16", "vnni": "VNNI", "amx_bf16": "AMX"}
    found = [name for key, name in names.items() if facts[key]]
    return ", ".join(found) or facts["processor"]


def _dtype_sentence(measured: dict[str, Any]) -> str:
    speeds = f"float32 {measured['fp32_gflops']:,.0f} GFLOP/s, bfloat16 {measured['bf16_gflops']:,.0f}"
    return f"{speeds} on the {measured['device']}: models run in {'bfloat16' if measured['fast_bf16'] else 'float32'}"


def summary(measured: dict[str, Any], folder: Path = Path(".")) -> str:
    """One line on this machine, from what `measure` returned."""
    facts = describe(folder)
    cards = "; ".join(f"{card['name']} with {card['memory_gb']} GiB" for card in facts["cuda"]) or "no CUDA device"
    memory = "unknown" if facts["memory_gb"] is None else f"{facts['memory_gb']} GiB"
    return (
        f"{facts['cores']} cores ({_names(facts)}), {cards}, memory {memory}, free disk {facts['free_disk_gb']} GiB; "
        f"measured {_dtype_sentence(measured)}"
    )


def doctor(folder: Path = Path(".")) -> dict[str, Any]:
    """What this machine has, what was measured on it, and the settings that follow."""
    measured = measure()
    settings = {
        "models_run_in": _dtype_sentence(measured),
        "allocator": "glibc, told to keep freed memory" if tune_allocator() else "as it is",
    }
    return describe(folder) | measured | settings


def tune_allocator() -> bool:
    """Let glibc keep freed memory: large arrays that come and go then need no new pages. False where there is no glibc."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    done = [mallopt(option, value) == 1 for option, value in _MALLOPT]
    return all(done)
