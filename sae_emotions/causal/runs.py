"""Run removals on texts: only what lies above the hook, from the first changed position on, many removals a batch.

Shapes: Q positions of a packed text (text, prompt, nodes), D residual width, P changed positions, J rows of a batch, L
positions computed, K positions looked at, W words, V vocabulary.

A removal takes `amount_P · direction` from the residual at `positions_P` of one text: a latent's own contribution, the
same amount along a random direction, or the projection on a vector. Everything before its first position is as in the
unchanged text, so keys and values of the baseline pass are used there.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sae_emotions.causal.readouts import Packed, WordLogProbs, WordTree, pack, word_log_probs
from sae_emotions.edit import editable
from sae_emotions.upper import Past, Upper

ROWS, LOGIT_ROWS = 24, 320  # removals a batch at most; read-out slots a batch, about


class Text(NamedTuple):
    """One text up to the hook."""

    packed: Packed
    x_QD: torch.Tensor
    """residual after the hook's block, unchanged"""
    keep_Q: torch.Tensor
    """bool: positions of the text that may be changed; prompt and words are the measuring instrument and stay"""


class Baseline(NamedTuple):
    """The same text above the hook, unchanged."""

    past: Past
    logits_CV: torch.Tensor
    """logits of the last positions asked for"""


class Removal(NamedTuple):
    """What to take out of one text's residual."""

    positions_P: torch.Tensor
    amount_P: torch.Tensor
    direction_D: torch.Tensor
    """the same everywhere, or one for each position (P x D)"""
    nodes: tuple[int, ...] = ()
    """nodes of the word tree to compute"""

    @property
    def first(self) -> int:
        """First changed position."""
        return int(self.positions_P[0]) if len(self.positions_P) else 0


def enter(upper: Upper, tree: WordTree, ids: Sequence[int], special: Collection[int]) -> Text:
    """Run the lower part of the model on one text with its prompt and all words."""
    device = next(upper.model.parameters()).device
    packed = pack(tree, ids)
    packed = packed._replace(**{name: getattr(packed, name).to(device) for name in ("ids_Q", "positions_Q", "see_QQ")})
    x_BQD = upper.residual(packed.ids_Q[None], packed.positions_Q[None], packed.see_QQ[None])
    keep_Q = editable(packed.ids_Q[None], None, special)[0]
    keep_Q[packed.text :] = False
    return Text(packed, x_BQD[0], keep_Q)


def unchanged(upper: Upper, text: Text, wanted: int) -> Baseline:
    """Run the upper part on the unchanged residual; logits of the last `wanted` positions."""
    packed = text.packed
    out = upper.run(text.x_QD[None], packed.positions_Q[None], packed.see_QQ[None], wanted=wanted)
    return Baseline(Past(out.past, packed.positions_Q), out.logits_BWV[0])


def _bucket(nodes: int) -> int:
    return 0 if nodes == 0 else 1 if nodes <= 4 else 2 if nodes <= 12 else 3


def batches(removals: Sequence[Removal]) -> Iterator[list[int]]:
    """Numbers of the removals that run together: like node counts, then like first positions, so little is padded."""
    order = sorted(range(len(removals)), key=lambda n: (_bucket(len(removals[n].nodes)), -removals[n].first))
    held: list[int] = []
    for n in order:
        most = max([len(removals[i].nodes) for i in held] + [len(removals[n].nodes)])
        other = held and _bucket(len(removals[held[0]].nodes)) != _bucket(len(removals[n].nodes))
        if held and (other or len(held) == ROWS or (len(held) + 1) * (1 + most) > LOGIT_ROWS):
            yield held
            held = []
        held.append(n)
    if held:
        yield held


def _layout(text: Text, removals: Sequence[Removal], start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed positions that each row computes (J x L), and what they look at (J x L x K)."""
    packed = text.packed
    device = packed.ids_Q.device
    most = max(len(removal.nodes) for removal in removals)
    # Rows with fewer nodes repeat one (or the prompt's end): computed, looked at by nobody else, never read.
    fill = [[*r.nodes, *[r.nodes[-1] if r.nodes else -1] * (most - len(r.nodes))] for r in removals]
    node_JN = torch.tensor(fill, dtype=torch.long, device=device).reshape(len(removals), most) + packed.stem
    stem_JL = torch.arange(start, packed.stem, device=device).expand(len(removals), -1)
    at_JL = torch.cat([stem_JL, node_JN], dim=1)
    nodes_JLN = packed.see_QQ[at_JL[:, :, None], node_JN[:, None, :]]
    for row, removal in enumerate(removals):
        nodes_JLN[row, :, len(removal.nodes) :] = False
    return at_JL, torch.cat([packed.see_QQ[at_JL][:, :, : packed.stem], nodes_JLN], dim=2)


def removed(
    upper: Upper, text: Text, base: Baseline, removals: Sequence[Removal], wanted: int | None, reuse: bool = True
) -> tuple[torch.Tensor, int]:
    """Logits of the last positions under each removal (J x C x V), and the first position that was computed.

    `wanted` counts positions up to the prompt's last; nodes come on top. None takes every computed position.
    `reuse=False` recomputes what lies before the first change too.
    """
    start = min([removal.first for removal in removals] + [text.packed.stem - 1]) if reuse else 0
    at_JL, see_JLK = _layout(text, removals, start)
    x_JLD = text.x_QD[at_JL]
    for row, removal in enumerate(removals):
        taken_PD = removal.amount_P[:, None] * removal.direction_D
        x_JLD[row, removal.positions_P - start] -= taken_PD.to(x_JLD.dtype)
    nodes = at_JL.shape[1] - (text.packed.stem - start)
    past = base.past.upto(start) if start else None
    count = None if wanted is None else wanted + nodes
    return upper.run(x_JLD, text.packed.positions_Q[at_JL], see_JLK, past, count).logits_BWV, start


def word_changes(
    upper: Upper,
    tree: WordTree,
    text: Text,
    removals: Sequence[Removal],
    done: Callable[[int], None] = lambda n: None,
) -> WordLogProbs:
    """Change of each word's log P by each removal on one text, nats; NaN for words whose nodes were not asked for.

    A removal that takes nothing changes nothing, up to the rounding of another batch shape.
    """
    base = unchanged(upper, text, 1 + len(tree.tokens))
    before = word_log_probs(tree, base.logits_CV[None], [range(len(tree.tokens))])
    change = WordLogProbs(*(np.zeros((len(removals), len(tree.paths))) for _ in before))
    for held in batches(removals):
        some = [removals[n] for n in held]
        logits_JCV, _ = removed(upper, text, base, some, wanted=1)
        after = word_log_probs(tree, logits_JCV, [removal.nodes for removal in some])
        for change_JW, after_JW, before_JW in zip(change, after, before, strict=True):
            change_JW[held] = after_JW - before_JW
        done(len(held))
    return change
