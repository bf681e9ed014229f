"""Run only the blocks above a hook, by the model's own forward, on residual streams that are already known.

Shapes: B rows, Q positions computed, P positions remembered, K = P + Q positions looked at, W positions read out, D
residual width, V vocabulary, H key heads.

The model's own `forward` runs with the blocks below replaced by ones that hand on their input, and the block of the
hook by one that hands out the given residual. So every other block keeps its number (and with it its kind of
attention), an embedding scale cannot touch the residual, and rotary positions, norm, unembedding and logit caps are the
model's. Keys and values travel in an object with the one method of transformers' caches that attention calls.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from sae_emotions.edit import hidden
from sae_emotions.errors import UserError
from sae_emotions.sources.models import decoder_blocks

_PLAIN_ATTENTION = {"full_attention", "sliding_attention"}


class Past(NamedTuple):
    """Keys and values of P earlier positions for every block above the hook; one row, shared by all rows of a batch."""

    blocks: dict[int, tuple[torch.Tensor, torch.Tensor]]
    """block -> keys and values, 1 x H x P x width of a head"""
    positions_P: torch.Tensor

    def upto(self, length: int) -> "Past":
        """The first `length` positions, as views."""
        blocks = {block: (k[:, :, :length], v[:, :, :length]) for block, (k, v) in self.blocks.items()}
        return Past(blocks, self.positions_P[:length])


class _Enough(Exception):
    """Raised where nothing further of a forward pass is needed."""


class _Memory:
    """Stands in for a transformers cache: prepends what is remembered, records all, may stop the pass at a block."""

    def __init__(self, before: dict[int, tuple[torch.Tensor, torch.Tensor]] | None, last: int | None) -> None:
        self.before = before or {}
        self.last = last
        self.seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of block `layer_idx` for all K positions."""
        if layer_idx in self.before:
            early = (one.expand(len(keys), -1, -1, -1) for one in self.before[layer_idx])
            keys, values = (torch.cat(pair, dim=2) for pair in zip(early, (keys, values), strict=True))
        self.seen[layer_idx] = (keys, values)
        if layer_idx == self.last:
            raise _Enough
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions remembered."""
        return self.before[layer_idx][0].shape[2] if layer_idx in self.before else 0


class _HandOn(torch.nn.Module):
    """A block that does nothing, or hands out a given residual stream whatever comes in."""

    def __init__(self, given_BQD: torch.Tensor | None = None) -> None:
        super().__init__()
        self.given_BQD = given_BQD

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The given residual, else the input."""
        return hidden_states if self.given_BQD is None else self.given_BQD


class Above(NamedTuple):
    """What a pass above the hook gives."""

    logits_BWV: torch.Tensor
    past: dict[int, tuple[torch.Tensor, torch.Tensor]]
    """block -> keys and values of all K positions, B x H x K x width of a head; empty for plain causal attention"""


class Upper:
    """The part of a model above the residual stream after `block` (0-based).

    `block_tokens` counts positions times blocks computed, as what a saving is measured against; a pass back counts like one
    up. Raises `UserError` where the block does not exist, or where this architecture gives other logits this way than by itself.
    """

    def __init__(self, model: Any, block: int) -> None:
        self.model = model
        self.blocks = decoder_blocks(model)
        self.block = block
        self.block_tokens = 0.0
        if not 0 <= block < len(self.blocks):
            raise UserError(f"Block {block} does not exist: this model has blocks 0 to {len(self.blocks) - 1}.")
        self.last = len(self.blocks) - 1
        self._settings = model.config.get_text_config()
        self._check()

    def residual(
        self, ids_BQ: torch.Tensor, positions_BQ: torch.Tensor | None = None, see_BQK: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x_BQD after the hook's block, unedited, by the lower part. `see_BQK` (bool) replaces the causal mask."""
        found: list[torch.Tensor] = []
        self.block_tokens += ids_BQ.numel() * (self.block + 1)

        def stop(module: torch.nn.Module, args: object, output: object) -> None:
            found.append(hidden(output))
            raise _Enough

        handle = self.blocks[self.block].register_forward_hook(stop)
        try:
            with torch.inference_mode():
                self.model(input_ids=ids_BQ, use_cache=False, **self._looks(positions_BQ, positions_BQ, see_BQK))
        except _Enough:
            pass
        finally:
            handle.remove()
        return found[0]

    @torch.inference_mode()
    def run(
        self,
        x_BQD: torch.Tensor,
        positions_BQ: torch.Tensor | None = None,
        see_BQK: torch.Tensor | None = None,
        past: Past | None = None,
        wanted: int | None = None,
    ) -> Above:
        """Logits of the last `wanted` positions (default: all Q) from the residual stream after the hook's block.

        `see_BQK` (bool, B may be 1) says which of the K positions, the remembered ones first, each position looks at;
        None is plain causal attention without a past. Of the last block only keys and values are computed for the
        positions that are not wanted.
        """
        B, Q = x_BQD.shape[:2]
        W = Q if wanted is None else wanted
        self.block_tokens += B * (Q * (self.last - self.block - 1) + W) if self.block < self.last else 0
        if see_BQK is None or positions_BQ is None:
            return Above(self._forward(self.block, x_BQD, None, W, {}).logits, {})
        before = past.blocks if past else None
        at_BK = positions_BQ
        if past is not None:
            at_BK = torch.cat([past.positions_P.expand(len(positions_BQ), -1), positions_BQ], dim=1)
        if W == Q or self.block == self.last:
            memory = _Memory(before, None)
            out = self._forward(self.block, x_BQD, memory, W, self._looks(positions_BQ, at_BK, see_BQK))
            return Above(out.logits, memory.seen)
        memory = _Memory(before, self.last)
        entering: list[torch.Tensor] = []
        handle = self.blocks[self.last].register_forward_pre_hook(
            lambda module, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        try:
            self._forward(self.block, x_BQD, memory, W, self._looks(positions_BQ, at_BK, see_BQK))
        except _Enough:
            pass
        finally:
            handle.remove()
        keys, values = memory.seen[self.last]
        finish = _Memory({self.last: (keys[:, :, :-W], values[:, :, :-W])}, None)
        looks = self._looks(positions_BQ[:, -W:], at_BK, see_BQK[:, -W:])
        out = self._forward(self.last - 1, entering[0][:, -W:], finish, W, looks)
        return Above(out.logits, memory.seen)

    def gradients(
        self,
        x_BQD: torch.Tensor,
        wanted: int,
        read: Callable[[torch.Tensor], torch.Tensor],
        reached: int | None = None,
    ) -> torch.Tensor:
        """Gradients by `x_BQD` of the R numbers that `read` makes of the logits of the last `wanted` positions (B x W x V).

        With `reached`, `read` gets the residual stream after that block instead (B x W x D). One pass above the hook up and one
        back for each number, all counted; plain causal attention. R x B x Q x D, float32.
        """
        with torch.inference_mode(False), torch.enable_grad():
            given_BQD = x_BQD.clone().requires_grad_()
            numbers_R = read(self.outputs(given_BQD, wanted, reached))
            found = [torch.autograd.grad(number, given_BQD, retain_graph=True)[0] for number in numbers_R]
        above = (self.last if reached is None else reached) - self.block
        self.block_tokens += len(found) * x_BQD.shape[0] * x_BQD.shape[1] * above
        return torch.stack(found).float()

    def outputs(self, x_BQD: torch.Tensor, wanted: int, reached: int | None = None) -> torch.Tensor:
        """Logits of the last `wanted` positions (B x W x V), or the residual stream after block `reached` (B x W x D).

        Plain causal attention; gradients flow where they are on.
        """
        self.block_tokens += (
            x_BQD.shape[0] * x_BQD.shape[1] * ((self.last if reached is None else reached) - self.block)
        )
        if reached is not None:
            return self._until(reached, x_BQD)[:, -wanted:]
        logits: torch.Tensor = self._forward(self.block, x_BQD, None, wanted, {}).logits
        return logits

    def _until(self, reached: int, given_BQD: torch.Tensor) -> torch.Tensor:
        found: list[torch.Tensor] = []

        def stop(module: torch.nn.Module, args: object, output: object) -> None:
            found.append(hidden(output))
            raise _Enough

        handle = self.blocks[reached].register_forward_hook(stop)
        try:
            self._forward(self.block, given_BQD, None, 1, {})
        except _Enough:
            pass
        finally:
            handle.remove()
        return found[0]

    def _forward(
        self, block: int, given_BQD: torch.Tensor, memory: _Memory | None, wanted: int, looks: dict[str, Any]
    ) -> Any:
        looks = looks if memory is None else {**looks, "cache": memory}
        with self._starting_after(block, given_BQD):
            # The embeddings are never looked at: the block of the hook hands out the given residual instead.
            return self.model(inputs_embeds=given_BQD, use_cache=memory is not None, logits_to_keep=wanted, **looks)

    @contextmanager
    def _starting_after(self, block: int, given_BQD: torch.Tensor) -> Iterator[None]:
        own = list(self.blocks)[: block + 1]
        try:
            for number in range(block):
                self.blocks[number] = _HandOn()
            self.blocks[block] = _HandOn(given_BQD)
            yield
        finally:
            for number, module in enumerate(own):
                self.blocks[number] = module

    def _looks(
        self, positions_BQ: torch.Tensor | None, at_BK: torch.Tensor | None, see_BQK: torch.Tensor | None
    ) -> dict[str, Any]:
        """Position ids and attention mask in the form this architecture's forward takes them."""
        if see_BQK is None or positions_BQ is None or at_BK is None:
            return {}
        window = getattr(self._settings, "sliding_window", None)
        near_BQK = see_BQK
        if window is not None:
            near_BQK = see_BQK & (positions_BQ[:, :, None] - at_BK[:, None, :] < window)
        kinds = getattr(self._settings, "layer_types", None)
        mask: Any = self._masked(near_BQK)
        if kinds is not None:
            masks = {"full_attention": self._masked(see_BQK), "sliding_attention": mask}
            mask = {kind: masks[kind] for kind in set(kinds)}
        return {"position_ids": positions_BQ, "attention_mask": mask}

    def _masked(self, see_BQK: torch.Tensor) -> torch.Tensor:
        if self._settings._attn_implementation == "sdpa":
            return see_BQK[:, None]
        dtype = self.model.dtype
        return torch.zeros(see_BQK.shape, dtype=dtype, device=see_BQK.device).masked_fill(
            ~see_BQK, torch.finfo(dtype).min
        )[:, None]

    @torch.inference_mode()
    def _check(self) -> None:
        """Compare with the model's own forward, plainly and with a past, on a few tokens."""
        name = type(self.model).__name__
        refusal = f"The blocks of {name} cannot be run on their own, so its features cannot be ablated."
        kinds = set(getattr(self._settings, "layer_types", None) or ["full_attention"])
        shared = getattr(self._settings, "num_kv_shared_layers", 0)
        if not kinds <= _PLAIN_ATTENTION or shared or self._settings._attn_implementation not in ("sdpa", "eager"):
            raise UserError(refusal)
        device = next(self.model.parameters()).device
        ids_BQ = torch.arange(3, 8, device=device)[None]
        at_BQ = torch.arange(5, device=device)[None]
        see_BQK = at_BQ[:, :, None] >= at_BQ[:, None, :]
        try:
            own_BQV = self.model(input_ids=ids_BQ, use_cache=False).logits
            x_BQD = self.residual(ids_BQ)
            plain = self.run(x_BQD)
            past = Past(self.run(x_BQD, at_BQ, see_BQK).past, at_BQ[0]).upto(2)
            late = self.run(x_BQD[:, 2:], at_BQ[:, 2:], see_BQK[:, 2:], past, wanted=2)
        except (TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:
            raise UserError(f"{refusal} ({error})") from error
        tolerance = own_BQV.std() * (1e-3 if self.model.dtype == torch.float32 else 0.1)
        for found, wanted in ((plain.logits_BWV, own_BQV), (late.logits_BWV, own_BQV[:, 3:])):
            if (found - wanted).abs().max() > tolerance:
                raise UserError(refusal)
        self.block_tokens = 0.0
