"""Two ways to run removals: whole passes of the model's own blocks, or on a CPU the changes alone; which one, and why.

J removals of a text, W words.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from sae_emotions.causal.readouts import WordLogProbs, WordTree
from sae_emotions.causal.runs import Removal, Text, enter, removed, unchanged, word_changes
from sae_emotions.harvest.readers import compiles
from sae_emotions.upper import Upper

WORTH = 2e12
"""Floating-point operations from which on compiling the loops pays."""
STRAY = {torch.float32: 0.01, torch.bfloat16: 0.1}
"""Relative error of a small removal's effects, against whole passes, from which on changes are not carried alone, by the
type that they are multiplied in. On SmolLM2-135M, above block 22, it was 5e-4 in float32 and .027 in bfloat16."""
ROWS = 384  # unembedded positions of a batch, about
Work = Iterable[tuple[Text, Sequence[Removal]]]


class Runner(Protocol):
    """Runs removals above a hook."""

    how: str
    """in words"""

    @property
    def block_tokens(self) -> float:
        """Positions times blocks that it has computed."""

    def words(self, tree: WordTree, work: Work, done: Callable[[int], None]) -> Iterator[WordLogProbs]:
        """Per text: change of each word's log P by each of its removals, nats; NaN where nodes were not asked for."""

    def kl(self, text: Text, removals: Sequence[Removal]) -> list[float]:
        """KL(unchanged || removed) of the next token, nats, summed over the text's positions, for each removal."""

    def close(self) -> None:
        """Let go of what it holds."""


class Whole:
    """The model's own blocks, on any device."""

    how = "whole passes of the blocks above the hook"

    def __init__(self, upper: Upper) -> None:
        self.upper, self.before = upper, upper.block_tokens

    @property
    def block_tokens(self) -> float:
        """See `Runner`."""
        return self.upper.block_tokens - self.before

    def words(self, tree: WordTree, work: Work, done: Callable[[int], None]) -> Iterator[WordLogProbs]:
        """See `Runner`."""
        for text, removals in work:
            yield word_changes(self.upper, tree, text, removals, done)

    def kl(self, text: Text, removals: Sequence[Removal]) -> list[float]:
        """See `Runner`."""
        base = unchanged(self.upper, text, text.packed.stem)
        before_SV = torch.log_softmax(base.logits_CV.float(), dim=-1)
        found = [0.0] * len(removals)
        order = sorted(range(len(removals)), key=lambda n: removals[n].first)
        while order:
            rows = max(1, ROWS // (text.packed.stem - removals[order[0]].first))
            held, order = order[:rows], order[rows:]
            logits_JCV, start = removed(self.upper, text, base, [removals[n] for n in held], wanted=None)
            for row, n in enumerate(held):
                after_CV = torch.log_softmax(logits_JCV[row].float(), dim=-1)
                found[n] = float((before_SV[start:].exp() * (before_SV[start:] - after_CV)).sum())
        return found

    def close(self) -> None:
        """See `Runner`."""


_TREE = WordTree((5, 6), (7,), (-1,), (((-1, 3),), ((-1, 7), (0, 4))))
"""Two words, one of two tokens, as `_stray` reads them."""


def _stray(upper: Upper, runner: Runner) -> float:
    """Relative error of a removal's effects on two words, against whole passes."""
    text = enter(upper, _TREE, list(range(3, 23)), ())
    g = torch.Generator().manual_seed(0)
    direction_D = torch.randn(text.x_QD.shape[1], generator=g)
    size = 0.1 * text.x_QD[1:].float().norm(dim=1).median() / direction_D.norm()
    some = [Removal(torch.tensor(at), size.expand(len(at)), direction_D, (0,)) for at in ([2, 9], [14])]
    (found,), (own,) = (list(one.words(_TREE, [(text, some)], lambda n: None)) for one in (runner, Whole(upper)))
    scale = np.abs(own.all_JW).max()
    return float(np.abs(found.all_JW - own.all_JW).max() / scale) if scale > 0 else np.inf


def runner_for(upper: Upper, block_tokens: float, places: int, dtype: torch.dtype) -> Runner:
    """The faster runner that is right for this model and device.

    `block_tokens` are to be computed; no text is longer than `places`; `dtype` is for products of changes.
    """
    model, layers = upper.model, upper.blocks[upper.block + 1 :]
    operations = 2.0 * block_tokens * sum(one.numel() for one in upper.blocks[upper.block].parameters())
    one = next(model.parameters())
    if not len(layers) or operations < WORTH or one.dtype != torch.float32 or not compiles(one.device):
        return Whole(upper)
    from sae_emotions.harvest.llama import unlike

    if unlike(model):
        return Whole(upper)
    from sae_emotions.causal.deltas import deltas

    spent = upper.block_tokens
    # float32 first: it shows whether these are Llama's blocks at all
    for kind in dict.fromkeys((torch.float32, dtype)):
        runner = deltas(model, upper.block, places, kind)
        stray = _stray(upper, runner)
        upper.block_tokens, runner.block_tokens = spent, 0.0
        if not stray < STRAY[kind]:
            runner.close()
            return Whole(upper)
        if kind != dtype:
            runner.close()
    return runner
