"""Which models the fused forward pass is right for, and how it is made of one.

Shapes: see `fused`.
"""

from typing import Any

import numpy as np
import torch

from sae_emotions.harvest.fused import Block, Fused, Heads
from sae_emotions.sources.models import decoder_blocks

_BLOCKS = {"LlamaDecoderLayer", "MistralDecoderLayer"}
_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj"}
_FIXED_ROTARY = {"default", "linear", "llama3"}
"""kinds of rotary positions whose angles do not depend on the length of the text"""


def unlike(model: Any) -> str | None:
    """What the blocks have that Llama's have not, in words; None where they are Llama's.

    That is: RMSNorm before attention and MLP, full causal attention with rotary positions and shared key heads, SwiGLU,
    no biases, nothing else. Decided from the modules and the config.
    """
    config = model.config.get_text_config()
    blocks: Any = decoder_blocks(model)
    kinds = {type(block).__name__ for block in blocks}
    if not kinds <= _BLOCKS:
        return f"blocks of another kind than Llama's ({', '.join(sorted(kinds - _BLOCKS))})"
    if getattr(config, "sliding_window", None) is not None:
        return "attention in a sliding window"
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return "attention of several kinds"
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") not in _FIXED_ROTARY:
        return "rotary positions that depend on the text's length"
    if config.hidden_act not in ("silu", "swish"):
        return f"the activation {config.hidden_act}"
    for block in blocks:
        inside = [(block, _PARTS), (block.self_attn, _ATTENTION), (block.mlp, _MLP)]
        if any({name for name, _ in one.named_children()} - {"act_fn"} != names for one, names in inside):
            return "other parts than Llama's"
        linear = [getattr(one, name) for one, names in inside[1:] for name in names]
        if any(type(one) is not torch.nn.Linear or one.bias is not None for one in linear):
            return "biases, or other layers than plain ones"
    return None


def _moved_together(*linear: torch.nn.Linear) -> torch.Tensor:
    """One weight matrix of several layers that read the same input; they go on looking at their part of it."""
    together = torch.cat([one.weight.detach() for one in linear])
    for one, part in zip(linear, together.split([len(one.weight) for one in linear]), strict=True):
        one.weight.data = part
    return together


def block_of(block: Any) -> Block:
    """The weights of one of the model's blocks, where they lie; see `_moved_together`."""
    attention, mlp = block.self_attn, block.mlp
    norms = (block.input_layernorm, block.post_attention_layernorm)
    norm_D, mlp_norm_D = (norm.weight.detach().float().numpy() for norm in norms)
    epsilon, mlp_epsilon = (np.float32(norm.variance_epsilon) for norm in norms)
    return Block(
        norm_D,
        _moved_together(attention.q_proj, attention.k_proj, attention.v_proj).t(),
        attention.o_proj.weight.detach().t(),
        mlp_norm_D,
        _moved_together(mlp.gate_proj, mlp.up_proj).t(),
        mlp.down_proj.weight.detach().t(),
        epsilon,
        mlp_epsilon,
    )


def heads_of(model: Any, places: int) -> Heads:
    """Shape of the model's attention, and the rotations of the first `places` positions."""
    config, blocks = model.config.get_text_config(), decoder_blocks(model)
    attention: Any = blocks[0].self_attn
    keys = config.num_key_value_heads
    with torch.inference_mode():
        cos_1LX, sin_1LX = model.model.rotary_emb(torch.zeros(1, dtype=torch.float32), torch.arange(places)[None])
    turns = cos_1LX[0].numpy(), sin_1LX[0].numpy()
    return Heads(config.num_attention_heads, keys, attention.k_proj.out_features // keys, attention.scaling, *turns)


def fused(model: Any, deepest: int, context: int) -> Fused:
    """The fused pass through blocks 0 to `deepest`, for windows of up to `context` tokens; see `unlike`."""
    blocks = [block_of(block) for block in decoder_blocks(model)[: deepest + 1]]
    return Fused(model.model.embed_tokens.weight.detach(), blocks, heads_of(model, context))
