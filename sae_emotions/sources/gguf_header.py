"""What a GGUF file says of itself: its fields and the types of its tensors, without touching the weights.

The `gguf` package's own reader takes seconds for the word list of a small model; this one skips over it.
"""

import mmap
import struct
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from sae_emotions.errors import UserError

# value type number -> struct code; 8 is a string, 9 an array
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PLAIN = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}


class Header(NamedTuple):
    """Fields by name (an array as its length), and the number of weights by tensor type."""

    fields: dict[str, Any]
    weights: dict[str, int]

    def storage(self) -> str:
        """How most weights are stored, such as 'Q4_1 (4 bits)'."""
        kind = max(self.weights, key=lambda name: self.weights[name])
        bits = _PLAIN.get(kind) or next((int(c) for c in kind if c.isdigit()), "?")
        return f"{kind} ({bits} bits)"

    def shape(self) -> dict[str, int]:
        """parameters, blocks, d_model and vocabulary."""
        kind = self.fields["general.architecture"]
        return {
            "parameters": sum(self.weights.values()),
            "blocks": int(self.fields[f"{kind}.block_count"]),
            "d_model": int(self.fields[f"{kind}.embedding_length"]),
            "vocabulary": int(self.fields["tokenizer.ggml.tokens"]),
        }


class _Cursor:
    """A place in the file that moves on as values are read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def text(self) -> str:
        length = self.take("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.take(_SCALARS[kind])
        inner, length = self.take("I"), self.take("Q")
        if inner in _SCALARS:
            self.at += length * struct.calcsize("<" + _SCALARS[inner])
        else:
            for _ in range(length):
                self.value(inner)
        return length


def read_header(path: Path) -> Header:
    """Read a GGUF's header. Raises `UserError` on a file that is no GGUF or ends too early."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _read(_Cursor(data))
            header.shape()
            return header
    except (ValueError, KeyError, IndexError, struct.error, OverflowError):
        raise UserError(f"{path} is not a whole GGUF file of a language model; fetch or export it again.") from None


def _read(cursor: _Cursor) -> Header:
    from gguf import GGMLQuantizationType

    if cursor.data[:4] != b"GGUF":
        raise ValueError("no GGUF mark")
    cursor.at = 4
    if cursor.take("I") not in (2, 3):
        raise ValueError("unknown version")
    n_tensors, n_fields = cursor.take("Q"), cursor.take("Q")
    fields: dict[str, Any] = {}
    for _ in range(n_fields):
        name = cursor.text()
        fields[name] = cursor.value(cursor.take("I"))
    weights: Counter[str] = Counter()
    for _ in range(n_tensors):
        cursor.text()
        count = 1
        for _ in range(cursor.take("I")):
            count *= cursor.take("Q")
        weights[GGMLQuantizationType(cursor.take("I")).name] += count
        cursor.take("Q")
    if not weights:
        raise ValueError("no tensors")
    return Header(fields, dict(weights))
