"""What the words after a readout prompt do while something is added to the residual stream.

Shapes: J additions, Q positions of a packed text, D residual width, W words.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from sae_emotions.causal.readouts import WordTree, word_log_probs
from sae_emotions.causal.runs import LOGIT_ROWS, ROWS, Text, enter, unchanged
from sae_emotions.edit import add, applied, editable
from sae_emotions.upper import Upper

Positions = Literal["all", "prompt"]
"""`all`: wherever the stream may be edited, the readout's own tokens and generated ones too; `prompt`: in the text alone"""


class Site(NamedTuple):
    """A text up to the hook, and where it is steered."""

    text: Text
    keep_Q: torch.Tensor


def site(upper: Upper, tree: WordTree, ids: Sequence[int], special: Collection[int], positions: Positions) -> Site:
    """Run the lower part of the model on one text with its prompt and words; only the upper part is ever run again."""
    text = enter(upper, tree, ids, special)
    return Site(text, text.keep_Q if positions == "prompt" else editable(text.packed.ids_Q[None], None, special)[0])


def word_changes(
    upper: Upper, tree: WordTree, at: Site, vectors_JD: torch.Tensor, done: Callable[[int], None] = lambda n: None
) -> np.ndarray:
    """Change of each word's log P by each addition, nats, J x W float64. An addition of nothing changes nothing."""
    packed, nodes = at.text.packed, range(len(tree.tokens))
    before = word_log_probs(tree, unchanged(upper, at.text, 1 + len(nodes)).logits_CV[None], [nodes]).all_JW
    change_JW = np.zeros((len(vectors_JD), len(tree.paths)))
    moved = np.flatnonzero(vectors_JD.ne(0).any(1).cpu().numpy())
    rows = max(1, min(ROWS, LOGIT_ROWS // (1 + len(nodes))))
    for start in range(0, len(moved), rows):
        some = moved[start : start + rows]
        vectors_B1D = vectors_JD[torch.from_numpy(some)].to(at.text.x_QD.device)[:, None]
        x_BQD = applied(add(vectors_B1D, 1), at.text.x_QD.expand(len(some), -1, -1), at.keep_Q.expand(len(some), -1))
        out = upper.run(x_BQD, packed.positions_Q[None], packed.see_QQ[None], wanted=1 + len(nodes))
        change_JW[some] = word_log_probs(tree, out.logits_BWV, [nodes] * len(some)).all_JW - before
        done(len(some))
    return change_JW
