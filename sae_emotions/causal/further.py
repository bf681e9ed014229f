"""Further readouts: the rest of a story, the stream further up, and a conversation whose parts are changed one at a time.

Each gives `Asked`s, one or several a text, whose gradients say to first order what removing any latent does
(`attribute.slopes`); `removal_effect` gives the exact effect of one.
Shapes: A positions that are read, V vocabulary, D residual width, C concepts, Q positions.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch

from sae_emotions.causal.attribute import Asked
from sae_emotions.causal.material import Story
from sae_emotions.concepts.probes import Dialogue
from sae_emotions.dictionary.encode import Dictionary
from sae_emotions.edit import editable
from sae_emotions.errors import UserError
from sae_emotions.upper import Upper

MIDDLE = (0.3, 0.7)  # a story is cut at the sentence's end that is nearest to its middle, within these shares of it


def cut(ids: Sequence[int], ends: Collection[int]) -> int:
    """How many tokens the first half has; `ends` are the token ids that end a sentence."""
    middle = len(ids) / 2
    low, high = (round(share * len(ids)) for share in MIDDLE)
    there = [n + 1 for n in range(max(low, 1) - 1, high) if ids[n] in ends]
    return min(there, key=lambda n: abs(n - middle), default=round(middle))


def sentence_ends(tokenizer: Any, stories: Sequence[Story]) -> frozenset[int]:
    """Ids of the stories' tokens that end a sentence."""
    used = sorted({token for story in stories for token in story.ids})
    return frozenset(token for token in used if tokenizer.decode([token]).rstrip("\"'”’ ").endswith((".", "!", "?")))


def continuation_asked(first: list[int], after: Sequence[int], sign: float) -> Asked:
    """Log-probability of `after` where it follows `first`, nats a token, times `sign`."""

    def read(logits_AV: torch.Tensor) -> torch.Tensor:
        logp_AV = torch.log_softmax(logits_AV[:-1].float(), dim=-1)
        token_A = torch.tensor(list(after), device=logp_AV.device)
        return sign * logp_AV.gather(1, token_A[:, None]).mean()

    return Asked(list(first), tuple(after), read)


def reading_asked(ids: list[int], prompt: Sequence[int], contrast_D: torch.Tensor) -> Asked:
    """The stream's product with `contrast_D` at the last position of `prompt`, which follows the text."""

    def read(x_AD: torch.Tensor) -> torch.Tensor:
        return x_AD[-1].float() @ contrast_D.to(x_AD.device)

    return Asked(list(ids), tuple(prompt), read)


PARTS = ("user turn", "assistant's opening", "response")


class Exchange(NamedTuple):
    """The first exchange of a conversation, as the model's chat template writes it."""

    ids: list[int]
    part_S: torch.Tensor
    """number of the part (see `PARTS`) that each token belongs to; -1 for the rest of the template"""


def exchange(tokenizer: Any, dialogue: Dialogue) -> Exchange:
    """Render the first user turn and its response, and find the parts. Raises `UserError` where there is no template.

    The opening is what the template puts between the user's words and the response: it names the speaker.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("This model has no chat template, so the parts of a conversation cannot be told apart.")
    turns = [turn for turn in dialogue.text.split("\n\n") if turn.strip()]
    user, reply = (turns[n].partition(":")[2].strip() for n in (0, 1))
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    asked = text.index(user)
    answered = text.index(reply, asked + len(user))
    text = text[: answered + len(reply)]
    found = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    starts = (asked, asked + len(user), answered)
    stops = (asked + len(user), answered, len(text))
    part_S = torch.full((len(found["input_ids"]),), -1)
    for place, (start, stop) in enumerate(found["offset_mapping"]):
        for part in range(len(PARTS)):
            if stop > start and starts[part] < stop <= stops[part]:
                part_S[place] = part
    return Exchange(list(found["input_ids"]), part_S)


@torch.inference_mode()
def removal_effect(
    upper: Upper,
    dictionary: Dictionary,
    asked: Sequence[Asked],
    latent: int,
    special: Collection[int],
    reached: int | None = None,
    keep_S: torch.Tensor | None = None,
) -> float:
    """Exact effect of removing a latent from a text on the sum of its readouts; `keep_S` (bool) leaves positions alone."""
    total = 0.0
    for one in asked:
        ids_1Q = torch.tensor([[*one.ids, *one.after]], device=next(upper.model.parameters()).device)
        x_QD = upper.residual(ids_1Q)[0]
        keep_Q = editable(ids_1Q, None, special)[0]
        keep_Q[len(one.ids) :] = False
        if keep_S is not None:
            keep_Q[: len(one.ids)] &= keep_S.to(keep_Q.device)
        removed_QD = x_QD.clone()
        if keep_Q.any():
            acts_N = dictionary.features(x_QD[keep_Q].float().cpu())[:, latent].to(x_QD.device)
            direction_D = dictionary.W_dec_FD[latent].to(x_QD.device)
            removed_QD[keep_Q] -= (acts_N[:, None] * direction_D).to(x_QD.dtype)
        out_BAX = upper.outputs(torch.stack([x_QD, removed_QD]), 1 + len(one.after), reached)
        total += float(one.read(out_BAX[1]) - one.read(out_BAX[0]))
    return total
