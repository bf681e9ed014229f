"""One row of a decoder straight from its safetensors file, without torch. D: residual width."""

import json
from pathlib import Path

import numpy as np

from sae_emotions.errors import UserError

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def decoder_row(path: Path, feature: int, name: str = "W_dec") -> np.ndarray:
    """Row `feature` of tensor `name` (features x D), float32. Raises `UserError` where file or tensor is unusable."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(length))[name]
            kind, width = np.dtype(_TYPES[entry["dtype"]]), entry["shape"][1]
            file.seek(8 + length + entry["data_offsets"][0] + feature * width * kind.itemsize)
            row_D = np.frombuffer(file.read(width * kind.itemsize), kind)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run the train stage that makes it.") from None
    except (ValueError, KeyError, IndexError, OverflowError, MemoryError):
        raise UserError(f"{path} holds no usable {name}; delete its folder and run the train stage again.") from None
    if len(row_D) < width:
        raise UserError(f"{path} is cut short; delete its folder and run the train stage again.")
    if kind.kind == "u":
        return (row_D.astype(np.uint32) << 16).view(np.float32)
    return row_D.astype(np.float32)
