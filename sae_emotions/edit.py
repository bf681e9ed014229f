"""The one place where a forward pass is changed: the residual stream after a block, where it may be edited.

Shapes: B texts, S positions, D residual width, V vocabulary. `keep_BS` is true where an edit may act: a real token that
is neither the first of its text nor special. Everywhere else the residual passes through untouched, whatever an edit
returns for it: the first position carries an attention sink tens of times as long as any other row, and no dictionary
here has seen it.

An edit is a function `(x_BSD, keep_BS) -> x_BSD`. It may return `x_BSD` itself, which is the identity bit for bit.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sae_emotions.errors import UserError
from sae_emotions.sources.models import decoder_blocks

Edit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def editable(ids_BS: torch.Tensor, mask_BS: torch.Tensor | None, special: Collection[int]) -> torch.Tensor:
    """keep_BS, bool: real tokens that are neither the first real one of their row nor among the `special` ids.

    `mask_BS` is nonzero at real tokens; None means that all are real.
    """
    real_BS = torch.ones_like(ids_BS, dtype=torch.bool) if mask_BS is None else mask_BS.bool()
    first_BS = real_BS & (real_BS.cumsum(1) == 1)
    return real_BS & ~first_BS & ~_among(ids_BS, special)


def _among(ids_BS: torch.Tensor, special: Collection[int]) -> torch.Tensor:
    return torch.isin(ids_BS, torch.tensor(sorted(special), dtype=ids_BS.dtype, device=ids_BS.device))


def hidden(output: object) -> torch.Tensor:
    """The residual stream in a block's output, which is a tensor or a tuple that starts with one."""
    first = output[0] if isinstance(output, tuple) else output
    assert isinstance(first, torch.Tensor)
    return first


def applied(edit: Edit, x_BSD: torch.Tensor, keep_BS: torch.Tensor) -> torch.Tensor:
    """`edit` at the kept positions, the very same bits elsewhere; an edit that returns its input changes nothing."""
    edited_BSD = edit(x_BSD, keep_BS)
    if edited_BSD is x_BSD:
        return x_BSD
    return torch.where(keep_BS[..., None], edited_BSD.to(x_BSD.dtype), x_BSD)


@contextmanager
def edited(
    model: torch.nn.Module,
    block: int,
    edit: Edit | None,
    special: Collection[int] = (),
    mask_BS: torch.Tensor | None = None,
) -> Iterator[torch.nn.Module]:
    """While open, the residual stream after `block` (0-based) is `edit(x_BSD, keep_BS)` where it may be edited.

    The model must be called with `input_ids`, by keyword or first: they say which positions may be edited. `special`
    are the token ids that never are. Real tokens are those of `mask_BS`, else of the call's `attention_mask`, else all:
    give `mask_BS` where a batch padded on the right is run without an attention mask. In a call that goes on from a
    filled `cache` all tokens are real, and none is the first. `edit=None` leaves the model alone. The model is restored on
    leaving, by an error too. Raises `UserError` where the block does not exist.
    """
    blocks = decoder_blocks(model)
    if not 0 <= block < len(blocks):
        raise UserError(f"Block {block} does not exist: this model has blocks 0 to {len(blocks) - 1}.")
    if edit is None:
        yield model
        return
    keep: list[torch.Tensor] = []

    def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids_BS = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        past = kwargs.get("cache")
        if past is not None and past.get_seq_length():
            keep[:] = [~_among(ids_BS, special)]
        else:
            keep[:] = [editable(ids_BS, kwargs.get("attention_mask") if mask_BS is None else mask_BS, special)]

    def after(module: torch.nn.Module, args: object, output: Any) -> Any:
        x_BSD = hidden(output)
        changed_BSD = applied(edit, x_BSD, keep[0])
        return (changed_BSD, *output[1:]) if isinstance(output, tuple) else changed_BSD

    handles = [model.register_forward_pre_hook(before, with_kwargs=True), blocks[block].register_forward_hook(after)]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def add(direction_D: torch.Tensor, strength: float) -> Edit:
    """Edit: `x + strength · d`. Strength is in units of the direction; 0 is the identity bit for bit."""

    def edit(x_BSD: torch.Tensor, keep_BS: torch.Tensor) -> torch.Tensor:
        return x_BSD if strength == 0 else x_BSD + strength * direction_D.to(x_BSD)

    return edit


def remove(
    features: Callable[[torch.Tensor], torch.Tensor], feature: int, direction_D: torch.Tensor, strength: float = 1
) -> Edit:
    """Edit: `x - strength · a · d`, a the feature's own activation there; what the dictionary misses stays.

    `features(x_BD) -> acts_BF` is a dictionary's encoder, float32. Strength 0 is the identity bit for bit.
    """

    def edit(x_BSD: torch.Tensor, keep_BS: torch.Tensor) -> torch.Tensor:
        if strength == 0:
            return x_BSD
        rows_ND = x_BSD[keep_BS]
        acts_N = features(rows_ND.float())[:, feature]
        out_BSD = x_BSD.clone()
        out_BSD[keep_BS] = (rows_ND.float() - strength * acts_N[:, None] * direction_D.to(acts_N)).to(x_BSD.dtype)
        return out_BSD

    return edit


def project_out(unit_D: torch.Tensor) -> Edit:
    """Edit: `x - (x·v) v` for a unit vector v: nothing is left of the stream along v."""

    def edit(x_BSD: torch.Tensor, keep_BS: torch.Tensor) -> torch.Tensor:
        v_D = unit_D.to(x_BSD)
        return x_BSD - (x_BSD @ v_D)[..., None] * v_D

    return edit


def splice(reconstruct: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    """Edit: the rows `x_ND` at the editable positions become `reconstruct(x_ND)`, computed in float32."""

    def edit(x_BSD: torch.Tensor, keep_BS: torch.Tensor) -> torch.Tensor:
        out_BSD = x_BSD.clone()
        out_BSD[keep_BS] = reconstruct(x_BSD[keep_BS].float()).to(x_BSD.dtype)
        return out_BSD

    return edit
