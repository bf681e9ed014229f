"""The one-time conversion of a GGUF file into a plain safetensors folder.

A packed GGUF loads in about 16 s and runs several times slower than dense weights, so the file is unpacked once, to
float32, and kept in the cache under its sha256 and the version of `transformers` that did it.
"""

from pathlib import Path
from typing import Any

from sae_emotions.artefact import read_json, write_json, written_folder
from sae_emotions.errors import UserError
from sae_emotions.progress import say
from sae_emotions.sources.gguf_header import read_header
from sae_emotions.sources.quiet import quiet
from sae_emotions.sources.wheels import cache_folder

RECORD = "stored.json"


def converted_folder(sha256: str) -> Path:
    """Where the unpacked form of the GGUF of this sha256 lies, or will lie."""
    from importlib import metadata

    return cache_folder() / "models" / f"{sha256[:16].lower()}-transformers-{metadata.version('transformers')}"


def is_converted(folder: Path, sha256: str) -> bool:
    """Whether `folder` holds the whole unpacked form of that GGUF; cheap, reads no weights."""
    if not (folder / RECORD).is_file():
        return False
    record = read_json(folder / RECORD)
    sizes: dict[str, int] = record.get("bytes", {})
    whole = all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())
    return whole and bool(sizes) and record.get("sha256") == sha256


def convert(path: Path, sha256: str) -> Path:
    """Unpack a GGUF of this sha256 to a float32 safetensors folder with its tokenizer, once; return the folder."""
    folder = converted_folder(sha256)
    if is_converted(folder, sha256):
        return folder
    stored = read_header(path).storage()
    say(f"Unpacking {path.name}, {stored}, to float32; this is done once.")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
        except (ValueError, KeyError, NotImplementedError, OSError) as error:
            raise UserError(
                f"{path.name} cannot be unpacked by this version of transformers: {_first(error)}."
            ) from None
        with written_folder(folder) as beside:
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
            sizes = {file.name: file.stat().st_size for file in sorted(beside.iterdir())}
            write_json(beside / RECORD, {"file": path.name, "sha256": sha256, "stored": stored, "bytes": sizes})
    return folder


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
