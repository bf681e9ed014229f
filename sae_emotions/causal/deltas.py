"""Removals carried through the blocks above the hook as changes of what the unchanged text has, for Llama's blocks on a CPU.

A removal changes little, so what it changes can be multiplied in bfloat16 where the whole could not: W (a + δ) is W a, known
in float32 from the unchanged text, plus W δ, whose rounding is relative to δ. Everything else, the nonlinear parts, is
worked out in float32 on a + δ. Each thread carries its own batch of removals, end
to end without padding; see `harvest.fused` for the same layout of a harvest.

Q positions of a packed text, N tokens of a batch of removals, D residual width, F width of the MLP, E = (H + 2 V) X: H query
heads and V key heads of width X. C slots that are read out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.causal import kernels
from sae_emotions.causal.readouts import WordLogProbs, WordTree, parts_of, slots_of, summed
from sae_emotions.causal.runs import Removal, Text
from sae_emotions.harvest.fused import Block, Heads, bits_of
from sae_emotions.harvest.lens import final_norm
from sae_emotions.harvest.llama import block_of, heads_of
from sae_emotions.sources.models import decoder_blocks
from sae_emotions.threads import Threads

TOKENS = 2048
"""Tokens a batch of removals, about."""
SLOTS = 256
"""Slots a batch that are read out, at most (or one removal's): all of the vocabulary is computed for each."""


class Known(NamedTuple):
    """What the unchanged text has in one block; float32."""

    x_QD: np.ndarray
    """the residual stream before attention"""
    normed_QD: np.ndarray
    qkv_QE: np.ndarray
    """rotated, queries scaled"""
    mixed_QE: np.ndarray
    """what attention hands to its last product"""
    between_QD: np.ndarray
    """the residual stream before the MLP"""
    mlp_normed_QD: np.ndarray
    both_QF: np.ndarray
    gated_QF: np.ndarray


class Base(NamedTuple):
    """A text, unchanged, above the hook."""

    text: Text
    blocks: list[Known]
    x_QD: np.ndarray
    """the residual stream after the last block"""
    normed_QD: np.ndarray
    cos_QX: np.ndarray
    sin_QX: np.ndarray
    slots: int
    """how many of the last positions can be read out"""
    p_SV: np.ndarray
    """their predictions"""


class Batch(NamedTuple):
    """Removals of one text that run together."""

    base: Base
    removals: list[Removal]
    wanted: int | None
    """positions of the stem that are read out, the last ones; None: all that may change"""
    last: bool
    """of its text"""
    block_tokens: float
    """positions times blocks that it computes; the last one's count the unchanged text's too"""


class Rows(NamedTuple):
    """Where one removal's tokens lie in its batch."""

    tokens: slice
    at_N: np.ndarray
    """their positions in the packed text: from the first changed one to the prompt's end, then nodes"""
    nodes_NM: np.ndarray
    """bool: which nodes each of its tokens looks at"""
    seen_N: np.ndarray
    """keys of the stem that each looks at"""
    read: int
    """the first of its tokens that is read out"""


class Top(NamedTuple):
    """What stands above the last block."""

    norm_D: np.ndarray
    epsilon: np.float32
    unembedding_VD: torch.Tensor


class Deltas:
    """The blocks above a hook, which multiplies changes in `dtype`. A `runners.Runner`."""

    def __init__(self, blocks: Sequence[Block], heads: Heads, top: Top, dtype: torch.dtype) -> None:
        self.heads, self.top, self.dtype = heads, top, dtype
        self.exact, self.blocks = blocks, [_rounded(block, dtype) for block in blocks]
        self.rough_DV = top.unembedding_VD.to(dtype).t()
        self.threads = Threads()
        self.how = f"changes alone, multiplied in {str(dtype).removeprefix('torch.')}"
        self.block_tokens = 0.0

    @torch.inference_mode()
    def base(self, text: Text, slots: int) -> Base:
        """Run the unchanged text; its last `slots` positions can be read out."""
        count, heads = len(text.packed.ids_Q), self.heads
        at, places = np.arange(count), text.packed.positions_Q.numpy()
        cos, sin = heads.cos_LX[places], heads.sin_LX[places]
        x_ND, blocks = text.x_QD.float().clone(), []
        zero_QD, zero_QE = np.zeros_like(x_ND.numpy()), np.zeros((count, self.exact[0].qkv_DE.shape[1]), np.float32)
        nodes, zero = tuple(range(count - text.packed.stem)), torch.zeros(1)
        everything = Removal(torch.zeros(1, dtype=torch.long), zero, zero, nodes)
        rows = _rows(text, everything, 0, None)
        for block in self.exact:
            x = x_ND.numpy().copy()
            h_ND = torch.empty_like(x_ND)
            kernels.normed(zero_QD, zero_QD, False, x, zero_QD, at, block.norm_D, block.epsilon, h_ND.numpy())
            raw_NE = torch.mm(h_ND, block.qkv_DE)
            mixed_NE = torch.empty(count, block.out_ED.shape[0])
            q, k, v = self._heads(raw_NE.numpy(), rows, zero_QE, cos, sin, 0)
            qkv_NE = np.concatenate([_flat(q), _flat(k), _flat(v)], axis=1)
            self._attend((q, k, v), rows, 0, np.zeros_like(mixed_NE.numpy()), mixed_NE.numpy())
            x_ND += torch.mm(mixed_NE, block.out_ED)
            between, m_ND = x_ND.numpy().copy(), torch.empty_like(x_ND)
            kernels.normed(
                zero_QD, zero_QD, False, between, zero_QD, at, block.mlp_norm_D, block.mlp_epsilon, m_ND.numpy()
            )
            both_NF = torch.mm(m_ND, block.both_DF)
            a_NF = torch.empty(count, block.down_FD.shape[0])
            nothing = np.zeros((1, both_NF.shape[1]), np.float32)
            kernels.gated(both_NF.numpy(), nothing, nothing, np.zeros(count, np.int64), a_NF.numpy())
            x_ND += torch.mm(a_NF, block.down_FD)
            known = (x, h_ND.numpy(), qkv_NE, mixed_NE.numpy(), between, m_ND.numpy(), both_NF.numpy(), a_NF.numpy())
            blocks.append(Known(*known))
        h_ND = torch.empty_like(x_ND)
        kernels.normed(
            zero_QD, zero_QD, False, x_ND.numpy(), zero_QD, at, self.top.norm_D, self.top.epsilon, h_ND.numpy()
        )
        p_SV = torch.softmax(torch.mm(h_ND[count - slots :], self.top.unembedding_VD.t()), dim=1)
        return Base(text, blocks, x_ND.numpy(), h_ND.numpy(), cos, sin, slots, p_SV.numpy())

    @torch.inference_mode()
    def _carried(self, batch: Batch) -> tuple[torch.Tensor, np.ndarray, list[int]]:
        """Changes of the final norm's output at the slots (C, D), their positions, and how many slots each removal has."""
        base, text = batch.base, batch.base.text
        rows: list[Rows] = []
        count = 0
        for removal in batch.removals:
            rows.append(_rows(text, removal, count, batch.wanted))
            count = rows[-1].tokens.stop
        at = np.concatenate([row.at_N for row in rows])
        dx_ND = torch.zeros(count, text.x_QD.shape[1])
        for row, removal in zip(rows, batch.removals, strict=True):
            where_P = removal.positions_P + (row.tokens.start - int(row.at_N[0]))
            dx_ND[where_P] -= removal.amount_P[:, None] * removal.direction_D
        dy_ND = torch.zeros_like(dx_ND, dtype=self.dtype)
        for number, (block, known) in enumerate(zip(self.blocks, base.blocks, strict=True)):
            h_ND = torch.empty_like(dx_ND, dtype=self.dtype)
            arrays = (dx_ND.numpy(), bits_of(dy_ND), number > 0, known.x_QD, known.normed_QD, at)
            kernels.normed(*arrays, block.norm_D, block.epsilon, bits_of(h_ND))
            d_NE = torch.mm(h_ND, block.qkv_DE)
            last = number == len(self.blocks) - 1
            takes = [slice(row.read if last else 0, None) for row in rows]
            parts = []
            for row, take in zip(rows, takes, strict=True):
                part = torch.empty(len(row.at_N[take]), block.out_ED.shape[0], dtype=self.dtype)
                made = self._heads(bits_of(d_NE)[row.tokens], row, known.qkv_QE, base.cos_QX, base.sin_QX, take.start)
                self._attend(made, row, take.start, known.mixed_QE, bits_of(part))
                parts.append(part)
            if last:
                chosen = np.concatenate([np.arange(row.tokens.start + row.read, row.tokens.stop) for row in rows])
                dx_ND, at = dx_ND[torch.from_numpy(chosen)], at[chosen]
            dy_ND = torch.mm(torch.cat(parts), block.out_ED)
            m_ND = torch.empty_like(dy_ND)
            arrays = (dx_ND.numpy(), bits_of(dy_ND), True, known.between_QD, known.mlp_normed_QD, at)
            kernels.normed(*arrays, block.mlp_norm_D, block.mlp_epsilon, bits_of(m_ND))
            d_NF = torch.mm(m_ND, block.both_DF)
            a_NF = torch.empty(len(at), block.down_FD.shape[0], dtype=self.dtype)
            kernels.gated(bits_of(d_NF), known.both_QF, known.gated_QF, at, bits_of(a_NF))
            dy_ND = torch.mm(a_NF, block.down_FD)
        out_CD = torch.empty_like(dx_ND)
        arrays = (dx_ND.numpy(), bits_of(dy_ND), True, base.x_QD, base.normed_QD, at)
        kernels.normed(*arrays, self.top.norm_D, self.top.epsilon, out_CD.numpy())
        return out_CD, at, [len(row.at_N) - row.read for row in rows]

    def _heads(
        self, d_NE: np.ndarray, row: Rows, base_QE: np.ndarray, cos: np.ndarray, sin: np.ndarray, first: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heads, shared = self.heads, self.heads.queries // self.heads.keys
        count, all_keys = len(row.at_N), int(row.at_N[0]) + len(row.at_N)
        q = torch.empty(heads.keys, count - first, shared, heads.width)
        k, v = (torch.empty(heads.keys, all_keys, heads.width) for _ in "kv")
        scale = np.float32(heads.scale * np.log2(np.e))
        kernels.laid(d_NE, row.at_N, base_QE, cos, sin, scale, first, q.numpy(), k.numpy(), v.numpy())
        return q, k, v

    def _attend(
        self,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        row: Rows,
        first: int,
        base_QE: np.ndarray,
        out_LE: np.ndarray,
    ) -> None:
        """By how much attention's outcome leaves `base_QE`, for a removal's tokens from `first` on."""
        q, k, v = qkv
        keys, count, shared, width = q.shape
        scores = torch.bmm(q.view(keys, -1, width), k.transpose(1, 2))
        over = np.empty((keys, count, shared), np.float32)
        four = scores.numpy().reshape(keys, count, shared, -1)
        stem = four.shape[3] - row.nodes_NM.shape[1]
        kernels.softened(four, row.seen_N[first:], stem, row.nodes_NM[first:], over)
        heads = torch.bmm(scores, v).numpy().reshape(keys, count, shared, width)
        kernels.mixed(heads, over, base_QE, row.at_N[first:], out_LE)

    @torch.inference_mode()
    def _moved(self, batch: Batch) -> tuple[torch.Tensor, list[int], np.ndarray, np.ndarray]:
        """Changes of the final norm's output, slots a removal, and per slot log E[e^d] and E[d] of the logits' changes d."""
        out_CD, at, counts = self._carried(batch)
        d_CV = torch.mm(out_CD.to(self.dtype), self.rough_DV)
        norm_C, mean_C = np.empty(len(at), np.float32), np.empty(len(at), np.float32)
        slot_C = at - (len(batch.base.text.packed.ids_Q) - batch.base.slots)
        kernels.moved(bits_of(d_CV), batch.base.p_SV, slot_C, norm_C, mean_C)
        return out_CD, counts, norm_C, mean_C

    def words(
        self, tree: WordTree, work: Iterable[tuple[Text, Sequence[Removal]]], done: Callable[[int], None]
    ) -> Iterator[WordLogProbs]:
        """See `runners.Runner`."""
        parts = parts_of(tree)
        some, column_K = np.unique(parts.token_K, return_inverse=True)
        some_DT = self.top.unembedding_VD[torch.from_numpy(some)].t()

        def read(batch: Batch) -> tuple[Batch, np.ndarray]:
            out_CD, counts, norm_C, _ = self._moved(batch)
            with torch.inference_mode():
                value_CT = torch.mm(out_CD, some_DT).numpy().astype(np.float64) - norm_C[:, None]
            slot_JK = slots_of(tree, parts, [removal.nodes for removal in batch.removals])
            row_JK = slot_JK + (np.cumsum(counts) - counts)[:, None]
            return batch, np.where(slot_JK < 0, np.nan, value_CT[np.where(slot_JK < 0, 0, row_JK), column_K])

        bases = self.threads.each(lambda one: (self.base(one[0], 1 + len(tree.tokens)), one[1]), work)
        jobs = (batch for base, removals in bases for batch in _batches(base, removals, 1))
        held: list[np.ndarray] = []
        for batch, value_JK in self.threads.each(read, jobs):
            held.append(value_JK)
            self.block_tokens += batch.block_tokens
            done(len(batch.removals))
            if batch.last:
                yield summed(tree, parts, np.concatenate(held))
                held = []

    def kl(self, text: Text, removals: Sequence[Removal]) -> list[float]:
        """See `runners.Runner`."""

        def read(batch: Batch) -> list[float]:
            _, counts, norm_C, mean_C = self._moved(batch)
            kl_C = norm_C.astype(np.float64) - mean_C
            return [float(part.sum()) for part in np.split(kl_C, np.cumsum(counts)[:-1])]

        (base,) = self.threads.each(lambda slots: self.base(text, slots), [text.packed.stem])
        batches = list(_batches(base, removals, None))
        self.block_tokens += sum(batch.block_tokens for batch in batches)
        return [one for some in self.threads.each(read, batches) for one in some]

    def close(self) -> None:
        """Let the threads end."""
        self.threads.close()


def deltas(model: Any, block: int, places: int, dtype: torch.dtype) -> Deltas:
    """What carries changes above the residual stream after `block`, in texts of at most `places` positions."""
    norm: Any = final_norm(model)
    top = Top(
        norm.weight.detach().numpy(), np.float32(norm.variance_epsilon), model.get_output_embeddings().weight.detach()
    )
    return Deltas([block_of(one) for one in decoder_blocks(model)[block + 1 :]], heads_of(model, places), top, dtype)


def _rounded(block: Block, dtype: torch.dtype) -> Block:
    products = {name: getattr(block, name).to(dtype) for name in ("qkv_DE", "out_ED", "both_DF", "down_FD")}
    return block._replace(**products)


def _rows(text: Text, removal: Removal, start: int, wanted: int | None) -> Rows:
    packed, first = text.packed, min(removal.first, text.packed.stem - 1)
    nodes = np.array(removal.nodes, np.int64) + packed.stem
    at_N = np.concatenate([np.arange(first, packed.stem), nodes])
    nodes_NM = packed.see_QQ.numpy()[np.ix_(at_N, nodes)]
    read = 0 if wanted is None else packed.stem - first - wanted
    return Rows(slice(start, start + len(at_N)), at_N, nodes_NM, np.minimum(at_N + 1, packed.stem), read)


def _batches(base: Base, removals: Sequence[Removal], wanted: int | None) -> Iterator[Batch]:
    """Removals in their order, as many at once as fit."""
    below, stem = len(base.blocks) - 1, base.text.packed.stem
    held: list[Removal] = []
    tokens = slots = 0
    for removal in removals:
        more = stem - min(removal.first, stem - 1) + len(removal.nodes)
        read = more if wanted is None else wanted + len(removal.nodes)
        if held and (tokens + more > TOKENS or slots + read > SLOTS):
            yield Batch(base, held, wanted, False, tokens * below + slots)
            held, tokens, slots = [], 0, 0
        held.append(removal)
        tokens, slots = tokens + more, slots + read
    whole = len(base.text.packed.ids_Q) * len(base.blocks)
    yield Batch(base, held, wanted, True, tokens * below + slots + whole)


def _flat(x: torch.Tensor) -> np.ndarray:
    """Heads first, (V, N, ...), to a row a token."""
    return x.transpose(0, 1).reshape(x.shape[1], -1).numpy()
