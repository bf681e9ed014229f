"""Readouts: a continuous number from a forward pass. The one here: log-probabilities of words that follow a text.

Shapes: W words, N inner nodes, Q positions of a packed text, J rows, C = 1 + n read-out slots, V vocabulary.

A text is followed by a prompt (`The main character feels`) and a word is read out as the sum of its tokens'
log-probabilities there. Words of several tokens share prefixes, so all of their tokens but the last form a tree, which
is packed behind the prompt: every node looks at the text, the prompt and its own ancestors only, and stands at the
position that it would have alone. One pass then gives every word's log-probability, as W passes would.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.errors import UserError

_BEFORE = "It was late."  # any text will do: how the prompt is tokenised must not depend on being alone


class WordTree(NamedTuple):
    """The words to read out as tokens."""

    prompt: tuple[int, ...]
    """token ids of the prompt; the first token of every word is read at its last position"""
    tokens: tuple[int, ...]
    """token id of each of N inner nodes"""
    parents: tuple[int, ...]
    """parent of each node, always an earlier node; -1 is the prompt's last token"""
    paths: tuple[tuple[tuple[int, int], ...], ...]
    """per word: (node or -1 where a token is predicted, that token's id)"""

    def ancestors(self, node: int) -> tuple[int, ...]:
        """The nodes from the root's child down to `node` itself."""
        return () if node < 0 else (*self.ancestors(self.parents[node]), node)

    def nodes_of(self, words: Iterable[int]) -> tuple[int, ...]:
        """The nodes that reading these words needs, parents first."""
        return tuple(sorted({node for word in words for node, _ in self.paths[word] if node >= 0}))

    def single(self) -> np.ndarray:
        """Which words are one token and so need no node. Shape W, bool."""
        return np.array([len(path) == 1 for path in self.paths])


def _following(tokenizer: Any, before: str, text: str) -> list[int]:
    """Token ids of `text` where it follows `before`."""
    head = tokenizer(before, add_special_tokens=False)["input_ids"]
    both = tokenizer(before + text, add_special_tokens=False)["input_ids"]
    if both[: len(head)] != head or len(both) == len(head):
        raise UserError(
            f"The readout cannot be asked for: this tokenizer joins '{text.strip()}' to the text before it; change the "
            "concept set's readout."
        )
    return list(both[len(head) :])


def word_tree(tokenizer: Any, readout: str, words: Sequence[str]) -> WordTree:
    """Tokenise the prompt and the words that may follow it. Raises `UserError` where two words are the same tokens."""
    prompt = _following(tokenizer, _BEFORE, readout)
    number: dict[tuple[int, ...], int] = {(): -1}
    tokens: list[int] = []
    parents: list[int] = []
    spelled = [tuple(_following(tokenizer, _BEFORE + readout, f" {word}")) for word in words]
    if len(set(spelled)) < len(spelled):
        twice = next(word for n, word in enumerate(words) if spelled[n] in spelled[:n])
        raise UserError(
            f"The word '{twice}' is read out by the same tokens as another concept's; give it another word."
        )
    for ids in spelled:
        for length in range(1, len(ids)):
            if ids[:length] not in number:
                number[ids[:length]] = len(tokens)
                tokens.append(ids[length - 1])
                parents.append(number[ids[: length - 1]])
    paths = tuple(tuple((number[ids[:at]], token) for at, token in enumerate(ids)) for ids in spelled)
    return WordTree(tuple(prompt), tuple(tokens), tuple(parents), paths)


class Packed(NamedTuple):
    """One text, the prompt and all nodes in one row."""

    ids_Q: torch.Tensor
    positions_Q: torch.Tensor
    see_QQ: torch.Tensor
    """bool: which positions each position looks at"""
    text: int
    """tokens of the text"""
    stem: int
    """tokens of text and prompt; nodes come behind"""


def pack(tree: WordTree, ids: Sequence[int]) -> Packed:
    """Lay out a text with its prompt and all nodes."""
    stem = len(ids) + len(tree.prompt)
    count = len(tree.tokens)
    lines = [tree.ancestors(node) for node in range(count)]
    positions_Q = torch.tensor([*range(stem), *(stem + len(line) - 1 for line in lines)])
    see_QQ = torch.zeros(stem + count, stem + count, dtype=torch.bool)
    see_QQ[:stem, :stem] = torch.ones(stem, stem, dtype=torch.bool).tril()
    see_QQ[stem:, :stem] = True
    for node, line in enumerate(lines):
        see_QQ[stem + node, [stem + at for at in line]] = True
    return Packed(torch.tensor([*ids, *tree.prompt, *tree.tokens]), positions_Q, see_QQ, len(ids), stem)


class WordLogProbs(NamedTuple):
    """log P in nats, float64, J x W."""

    first_JW: np.ndarray
    """of each word's first token"""
    all_JW: np.ndarray
    """of the whole word; NaN where nodes that it needs are missing"""


class Parts(NamedTuple):
    """The tokens of all words, one after the other. Shape K each."""

    node_K: np.ndarray
    """where the token is predicted; -1 is the prompt's last token"""
    token_K: np.ndarray
    word_K: np.ndarray


def parts_of(tree: WordTree) -> Parts:
    """Every token of every word, and where it is predicted."""
    rows = ((node, token, word) for word, path in enumerate(tree.paths) for node, token in path)
    return Parts(*(np.array(column) for column in zip(*rows, strict=True)))


def slots_of(tree: WordTree, parts: Parts, slots: Sequence[Sequence[int]]) -> np.ndarray:
    """The slot at which row j reads each token, J x K; -1 where its node is missing. See `word_log_probs`."""
    slot_JK = np.zeros((len(slots), len(parts.node_K)), np.int64)
    for row, nodes in enumerate(slots):
        slot_N = np.full(len(tree.tokens) + 1, -1)
        slot_N[list(nodes)] = np.arange(1, len(nodes) + 1)
        slot_N[-1] = 0  # node -1, the prompt's last token
        slot_JK[row] = slot_N[parts.node_K]
    return slot_JK


def summed(tree: WordTree, parts: Parts, value_JK: np.ndarray) -> WordLogProbs:
    """Words' log P from their tokens', NaN where one is missing."""
    all_JW = np.zeros((len(value_JK), len(tree.paths)))
    np.add.at(all_JW.T, parts.word_K, value_JK.T)
    return WordLogProbs(value_JK[:, parts.node_K < 0], all_JW)


def word_log_probs(tree: WordTree, logits_JCV: torch.Tensor, slots: Sequence[Sequence[int]]) -> WordLogProbs:
    """Read the words out of logits. Slot 0 is the prompt's last token; slot 1 + i of row j is node `slots[j][i]`."""
    parts = parts_of(tree)
    slot_JK = slots_of(tree, parts, slots)
    there_JK = slot_JK >= 0
    row_J1 = torch.arange(len(slots))[:, None]
    at_JK = torch.from_numpy(np.where(there_JK, slot_JK, 0))
    total_JC = torch.logsumexp(logits_JCV.float(), dim=-1)
    value_JK = (logits_JCV[row_J1, at_JK, torch.from_numpy(parts.token_K)].float() - total_JC[row_J1, at_JK]).double()
    return summed(tree, parts, np.where(there_JK, value_JK.cpu().numpy(), np.nan))
