"""The general text: a weighted mixture of documents, in an order that the seed alone decides.

Weights are shares of tokens. The mixture always takes its next document from the source that lags furthest behind its
share. A document counts as its characters over its source's characters per token, measured once on the first documents:
so no text is tokenised twice. A source that runs dry leaves its share to the others.
"""

import hashlib
import html
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from sae_emotions.config import TextConfig, TextSource
from sae_emotions.errors import UserError
from sae_emotions.sources.chat import render_chat
from sae_emotions.sources.hub import hub_values
from sae_emotions.sources.known import known_sources
from sae_emotions.sources.tables import Values, kind_of, read_column
from sae_emotions.sources.wheels import SCHEME, member_of_wheel

__all__ = ["Document", "documents", "known_sources"]

_SHUFFLED_CHARACTERS = 256_000_000  # a local table up to this size is permuted as a whole, a larger one block by block
_MEASURED_DOCUMENTS = 32
_SHORT = 32  # characters below which a text is tokenised to see that it has two tokens
_BREAK = re.compile(r"[ \t]*<br\s*/?>[ \t]*", re.IGNORECASE)
_ESCAPE = re.compile(r'\\([nrt"\'\\])')
_ESCAPED = {"n": "\n", "r": "\n", "t": "\t"}


class Document(NamedTuple):
    """One text of the mixture; a chat arrives as its chat template renders it."""

    key: str
    source: str
    text: str


class _Stream(NamedTuple):
    documents: Iterator[Document]
    weight: float
    characters_per_token: float


def documents(config: TextConfig, tokenizer: Any, seed: int) -> Iterator[Document]:
    """The documents of the mixture, without end conditions of its own: it stops when every source has run dry.

    Every source is opened, and its first documents are read, before this returns, so bad input shows at once. Rows of
    local tables come in a seeded permutation, hub streams as they come. A text that came before, in any source, is left
    out, and so is one of fewer than two tokens.

    Raises `UserError`: unknown, unreachable or empty source, missing column, wrong type of value or file.
    """
    names = _names(config.sources)
    numbered = enumerate(zip(config.sources, names, strict=True))
    return _mixture([_stream(source, name, tokenizer, (seed, i)) for i, (source, name) in numbered])


def _names(sources: tuple[TextSource, ...]) -> list[str]:
    """Short names, distinct: the file's name, or the hub id."""
    names: list[str] = []
    for source in sources:
        is_file = source.source.startswith(SCHEME) or kind_of(source.source) is not None
        name = PurePosixPath(source.source).name if is_file else source.source.rstrip("/\\")
        if source.subset:
            name = f"{name}:{source.subset}"
        same = sum(other == name or other.startswith(f"{name}#") for other in names)
        names.append(f"{name}#{same + 1}" if same else name)
    return names


def _stream(source: TextSource, name: str, tokenizer: Any, seed: tuple[int, int]) -> _Stream:
    texts = _documents(source, name, tokenizer, seed)
    first = list(islice(texts, _MEASURED_DOCUMENTS))
    if not first:
        raise UserError(f"The text source {name} holds no text of two tokens or more in column '{source.column}'.")
    characters = sum(len(document.text) for document in first)
    tokens = sum(len(ids) for ids in tokenizer([d.text for d in first], add_special_tokens=False)["input_ids"])
    return _Stream(chain(first, texts), source.weight, characters / max(tokens, 1))


def _mixture(streams: list[_Stream]) -> Iterator[Document]:
    tokens = [0.0] * len(streams)
    alive = set(range(len(streams)))
    seen: set[bytes] = set()
    while alive:
        behind = min(alive, key=lambda i: (tokens[i] / streams[i].weight, i))
        for document in streams[behind].documents:
            mark = hashlib.blake2b(document.text.encode(), digest_size=16).digest()
            if mark not in seen:
                seen.add(mark)
                tokens[behind] += len(document.text) / streams[behind].characters_per_token
                yield document
                break
        else:
            alive.discard(behind)


def _values(source: TextSource, seed: tuple[int, int]) -> Values:
    """(row, value) of one source, local rows in a seeded order."""
    where = source.source
    if where.startswith(SCHEME):
        return _shuffled(read_column(member_of_wheel(where, source.sha256), source.column), seed)
    path = Path(where).expanduser()
    looks_local = (
        where.startswith((".", "/", "~")) or "\\" in where or path.exists() or ("." in where and "/" not in where)
    )
    if path.is_dir():
        return hub_values(source.model_copy(update={"source": str(path)}))
    if looks_local or kind_of(where) is not None:
        return _shuffled(read_column(path, source.column), seed)
    return hub_values(source)


def _shuffled(values: Values, seed: tuple[int, int]) -> Values:
    """A seeded permutation of the rows, within blocks of bounded memory."""
    rng = np.random.default_rng(seed)
    block: list[tuple[int, Any]] = []
    size = 0
    for item in values:
        block.append(item)
        size += len(item[1]) if isinstance(item[1], str) else len(str(item[1]))
        if size > _SHUFFLED_CHARACTERS:
            yield from (block[i] for i in rng.permutation(len(block)))
            block, size = [], 0
    yield from (block[i] for i in rng.permutation(len(block)))


def _documents(source: TextSource, name: str, tokenizer: Any, seed: tuple[int, int]) -> Iterator[Document]:
    found = 0
    for row, value in _values(source, seed):
        if not isinstance(value, str | list):
            kind = type(value).__name__
            raise UserError(f"Column '{source.column}' of {name} holds values of type {kind}, neither texts nor chats.")
        text = value if isinstance(value, str) else render_chat(value, tokenizer, name)
        text = _clean(text, source)
        if source.drop_lowercase and text == text.lower():
            continue
        if len(text) < _SHORT and len(tokenizer(text, add_special_tokens=False)["input_ids"]) < 2:
            continue
        yield Document(f"{name}:{row}", name, text)
        found += 1
        if source.max_documents is not None and found >= source.max_documents:
            return


def _clean(text: str, source: TextSource) -> str:
    if source.unescape:
        text = html.unescape(_ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), text))
    if source.strip_html:
        text = _BREAK.sub("\n", text)
    return text.strip()
