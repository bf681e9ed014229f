"""The forward pass of Llama's blocks on a CPU: torch's matrix products, and numba's loops for all between them.

A thread runs the whole pass of its own batch, on products of one thread: nothing waits for another core within a pass.
The windows of a batch lie end to end, without padding; no window looks at another, for attention alone is computed
window by window, and within a window tile by tile of queries, so that most of what causality hides is never computed.

N tokens of a batch, W windows, D residual width, F width of the MLP, E = (H + 2 V) X: H query heads and V key heads of
width X, G = H / V. L: places of a window in attention, which alone is padded.
"""

import threading
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sae_emotions.harvest import kernels
from sae_emotions.harvest.batching import Packed

ROWS = 512
"""Rows of the MLP at once: what lies between its products stays in a core's cache."""
QUERIES = 64
"""Positions whose scores are computed at once, against what they and those before them can see."""
SCORES = 2**21
"""Scores that are held at once, about."""
PLACES = 16
"""Windows' places are a multiple of this: fewer shapes for the libraries to prepare."""
WASTE = 1.25
"""Places a token in a group of windows that attention is computed for together."""


class Block(NamedTuple):
    """One block's weights."""

    norm_D: np.ndarray
    qkv_DE: torch.Tensor
    out_ED: torch.Tensor
    mlp_norm_D: np.ndarray
    both_DF: torch.Tensor
    """gate, then up: twice the MLP's width"""
    down_FD: torch.Tensor
    epsilon: np.float32
    mlp_epsilon: np.float32


class Heads(NamedTuple):
    """Shape and scale of attention, and the rotation of each place."""

    queries: int
    keys: int
    width: int
    scale: float
    cos_LX: np.ndarray
    sin_LX: np.ndarray


class Both(NamedTuple):
    """The same memory for torch and, as float32 or bits of bfloat16, for numba."""

    t: torch.Tensor
    n: np.ndarray


class Tile(NamedTuple):
    """Some neighbouring places of some windows of a group, as views of the thread's memory."""

    q: torch.Tensor
    k: torch.Tensor
    """transposed: all places up to the tile's last"""
    v: torch.Tensor
    scores: torch.Tensor
    heads: torch.Tensor
    soft: tuple[np.ndarray, np.ndarray, int, np.ndarray]
    """what `kernels.softmax` takes"""
    home: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, np.ndarray]
    """what `kernels.gather` takes"""


class Group(NamedTuple):
    """Windows that attention is computed for together."""

    turn: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    """what `kernels.rotate` takes: the tokens' q, k and v, the windows' lengths, and where it lays them"""
    tiles: list[Tile]


class Room(NamedTuple):
    """A thread's memory for one batch. Every block uses all of it again."""

    h: Both
    y: Both
    qkv: Both
    mixed: Both
    both: Both
    gated: Both
    groups: list[Group]


class Fused:
    """The first blocks of a Llama, for windows of as many tokens as there are rotations. Threads may call it at once.

    See `llama` for which models this is right for.
    """

    def __init__(self, embedding_VD: torch.Tensor, blocks: Sequence[Block], heads: Heads) -> None:
        self.embedding_VD, self.blocks, self.heads = embedding_VD, blocks, heads
        self._own = threading.local()

    @torch.inference_mode()
    def read(self, batch: Packed, wanted: Collection[int]) -> dict[int, torch.Tensor]:
        """Residual stream after each block of `wanted`: block -> x_ND, float32, the batch's windows end to end."""
        deepest, heads = max(wanted), self.heads
        room = self._laid_out(batch)
        h, y = room.h.n, room.y.n
        x_ND = self.embedding_VD[torch.from_numpy(batch.ids_N)].float()
        x, found = x_ND.numpy(), dict[int, torch.Tensor]()
        for number, block in enumerate(self.blocks[: deepest + 1]):
            kernels.norm(x, y, number > 0, block.norm_D, block.epsilon, h)
            if number - 1 in wanted:
                found[number - 1] = x_ND.clone()
            torch.mm(room.h.t, block.qkv_DE, out=room.qkv.t)
            for group in room.groups:
                kernels.rotate(*group.turn, heads.cos_LX, heads.sin_LX, np.float32(heads.scale * np.log2(np.e)))
                for tile in group.tiles:
                    torch.bmm(tile.q, tile.k, out=tile.scores)
                    kernels.softmax(*tile.soft)
                    torch.bmm(tile.scores, tile.v, out=tile.heads)
                    kernels.gather(*tile.home)
            torch.mm(room.mixed.t, block.out_ED, out=room.y.t)
            kernels.norm(x, y, True, block.mlp_norm_D, block.mlp_epsilon, h)
            self._mlp(room, block)
        kernels.add(x, y)
        return found | {deepest: x_ND}

    def _mlp(self, room: Room, block: Block) -> None:
        for at in range(0, len(room.h.t), ROWS):
            rows = slice(at, min(at + ROWS, len(room.h.t)))
            here = slice(0, rows.stop - at)
            torch.mm(room.h.t[rows], block.both_DF, out=room.both.t[here])
            kernels.gate(room.both.n[here], room.gated.n[here])
            torch.mm(room.gated.t[here], block.down_FD, out=room.y.t[rows])

    def _laid_out(self, batch: Packed) -> Room:
        block, count = self.blocks[0], len(batch.ids_N)
        width, rows = self.embedding_VD.shape[1], min(count, ROWS)
        qkv = self._memory("qkv", count, block.qkv_DE.shape[1])
        mixed = self._memory("mixed", count, block.out_ED.shape[0])
        groups = []
        for some in grouped(batch.length_W):
            tokens = slice(int(batch.start_W[some.start]), int(batch.start_W[some.stop]))
            groups.append(self._group(qkv.n[tokens], mixed.n[tokens], batch.length_W[some]))
        return Room(
            self._memory("h", count, width),
            self._memory("y", count, width),
            qkv,
            mixed,
            self._memory("both", rows, block.both_DF.shape[1]),
            self._memory("gated", rows, block.down_FD.shape[0]),
            groups,
        )

    def _group(self, qkv: np.ndarray, mixed: np.ndarray, length_W: np.ndarray) -> Group:
        keys, width, shared = self.heads.keys, self.heads.width, self.heads.queries // self.heads.keys
        windows, start_W = len(length_W), length_W.cumsum() - length_W
        places = -int(length_W.max()) // PLACES * -PLACES
        q = self._memory("q", windows, keys, places, shared, width)
        k, v = (self._memory(name, windows, keys, places, width) for name in "kv")
        q_, k_, v_ = q.t.view(-1, places * shared, width), k.t.view(-1, places, width), v.t.view(-1, places, width)
        few = max(1, SCORES // (self.heads.queries * min(QUERIES, places) * places))
        tiles = []
        for w in range(0, windows, few):
            some = slice(w, min(w + few, windows))
            rows, held = slice(some.start * keys, some.stop * keys), some.stop - some.start
            for at in range(0, places, QUERIES):
                seen = min(at + QUERIES, places)
                scores = self._memory("scores", held, keys, (seen - at) * shared, seen)
                heads = self._memory("heads", held, keys, seen - at, shared, width)
                over = np.empty((held, keys, seen - at, shared), np.float32)
                tile = Tile(
                    q_[rows, at * shared : seen * shared],
                    k_[rows, :seen].transpose(1, 2),
                    v_[rows, :seen],
                    scores.t.view(held * keys, -1, seen),
                    heads.t.view(held * keys, -1, width),
                    (scores.n, length_W[some], at, over),
                    (heads.n, over, start_W[some], length_W[some], at, mixed),
                )
                tiles.append(tile)
        return Group((qkv, length_W, q.n, k.n, v.n), tiles)

    def _memory(self, name: str, *shape: int) -> Both:
        """This thread's own memory by this name, which is used again: what it held is lost."""
        rooms: dict[str, torch.Tensor] = self._own.__dict__
        size = int(np.prod(shape))
        if name not in rooms or rooms[name].numel() < size:
            rooms[name] = torch.zeros(size, dtype=self.embedding_VD.dtype)
        t = rooms[name][:size].view(shape)
        return Both(t, bits_of(t))


def bits_of(t: torch.Tensor) -> np.ndarray:
    """A tensor's memory for numba: float32, or the bits of bfloat16."""
    found: np.ndarray = t.numpy() if t.dtype == torch.float32 else t.view(torch.int16).numpy().view(np.uint16)
    return found


def grouped(length_W: np.ndarray) -> Iterator[slice]:
    """Neighbouring windows, as many as may be laid out together without much waste."""
    start = longest = total = 0
    for w, length in enumerate(length_W.tolist()):
        longest, total = max(longest, length), total + length
        if longest * (w + 1 - start) > WASTE * total + 2 * PLACES * (w + 1 - start):
            yield slice(start, w)
            start, longest, total = w, length, length
    yield slice(start, len(length_W))
