"""The kernels are compiled for GPUs that are not here, with the arguments that the engine launches them with.

The interpreter takes much that the compiler does not: annotations, types that change in a loop, shapes that are no powers of 2.
"""

from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sae_emotions.sparse import triton_engine, triton_screen
from sae_emotions.sparse.shapes import Active, AdamRate, Weights
from sae_emotions.sparse.triton_engine import Triton

TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.int32: "*i32", torch.int64: "*i64"}


class Compiler:
    """Stands in for `launch`: compiles, and runs nothing."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.assembly: dict[str, str] = {}

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **blocks: int) -> None:
        assert all(size > 0 for size in grid)
        names = [name for name in kernel.arg_names if name not in blocks]
        signature, fixed, attributes = dict.fromkeys(kernel.arg_names, "constexpr"), dict(blocks), {}
        for name, given in zip(names, arguments, strict=True):
            whole = (given.data_ptr() if isinstance(given, torch.Tensor) else given) % 16 == 0
            if isinstance(given, torch.Tensor):
                assert given.is_contiguous()
                signature[name] = TYPES[given.dtype]
            elif isinstance(given, float):
                signature[name], whole = "fp32", False
            elif given == 1:  # as a launch does
                fixed[name] = 1
            else:
                signature[name] = "i32"
            if whole:
                attributes[(kernel.arg_names.index(name),)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, fixed, attributes)
        self.assembly[kernel.__name__] = triton.compile(source, target=self.target, options={"num_warps": warps}).asm[
            "ptx"
        ]


@pytest.mark.parametrize(
    ("capability", "width", "latents", "k", "levels"), [(80, 70, 333, 1, 3), (90, 2304, 2048, 64, 1)]
)
def test_every_launch_compiles(
    monkeypatch: pytest.MonkeyPatch, capability: int, width: int, latents: int, k: int, levels: int
) -> None:
    compiler = Compiler(capability)
    for module in (triton_engine, triton_screen):
        monkeypatch.setattr(module, "launch", compiler)
    monkeypatch.setattr(triton_engine, "PART", 8)
    x_BD, W_MD = torch.zeros(20, width), torch.zeros(latents, width)
    weights = Weights(W_MD, torch.zeros(latents), W_MD, torch.zeros(width))
    level_M = torch.arange(latents) * levels // latents
    engine = Triton(recorder=None)
    engine._top_now(x_BD, torch.ones(latents), *weights, k)
    acts_BM = torch.zeros(20, latents)
    acts_BM[:, :k] = 1
    active = Active.of(acts_BM)
    errors = engine.errors(x_BD, weights, active, level_M)
    engine.gradients(x_BD, weights, active, errors, level_M)
    engine.adam(weights, weights, weights, weights, AdamRate(1e-3, 0.9, 0.999, 1e-8, 1, 1.0))
    assert len(compiler.assembly) == 8
    product = compiler.assembly["bound_scores"]
    assert ("wgmma" if capability == 90 else "mma.sync") in product, "the product uses no tensor core"
