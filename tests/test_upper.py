"""The blocks above a hook, run on their own: equal to the model's own forward, for several architectures."""

from typing import Any

import pytest
import torch
import transformers

from sae_emotions.errors import UserError
from sae_emotions.upper import Past, Upper

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_eager": ("Llama", {"attn_implementation": "eager"}),
    "qwen3": ("Qwen3", {}),
    "mistral_window": ("Mistral", {"sliding_window": 4}),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {"sliding_window": 4}),
    "gemma3": ("Gemma3", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}),
}
TEXT_CONFIG = {"Gemma3": "Gemma3TextConfig"}


@pytest.fixture(scope="module", params=list(KINDS))
def model(request):
    name, given = KINDS[request.param]
    extra = dict(given)
    attention = extra.pop("attn_implementation", None)
    config = getattr(transformers, TEXT_CONFIG.get(name, f"{name}Config"))(**SHAPE, **extra)
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")._from_config(config, attn_implementation=attention).eval()


@pytest.fixture
def ids_BQ():
    return torch.randint(3, 60, (3, 11), generator=torch.Generator().manual_seed(1))


def own(model, ids_BQ):
    with torch.inference_mode():
        return model(input_ids=ids_BQ, use_cache=False).logits


@pytest.mark.parametrize("block", [0, 1, 2, 3])
def test_upper_equals_the_full_forward_bit_for_bit(model, ids_BQ, block):
    upper = Upper(model, block)
    before = [id(module) for module in upper.blocks]
    x_BQD = upper.residual(ids_BQ)
    assert torch.equal(upper.run(x_BQD).logits_BWV, own(model, ids_BQ))
    assert [id(module) for module in upper.blocks] == before


@pytest.mark.parametrize("block", [0, 2, 3])
def test_prefix_reuse_equals_no_reuse(model, ids_BQ, block):
    upper = Upper(model, block)
    x_BQD = upper.residual(ids_BQ)
    at_BQ = torch.arange(11)[None]
    see_BQK = at_BQ[:, :, None] >= at_BQ[:, None, :]
    first = upper.run(x_BQD[:1], at_BQ, see_BQK)
    # Rows that share the first row's first six positions, as interventions on one text do.
    x_BQD = torch.cat([x_BQD[:1, :6].expand(3, -1, -1), x_BQD[:, 6:]], dim=1)
    whole = upper.run(x_BQD, at_BQ, see_BQK)
    late = upper.run(x_BQD[:, 6:], at_BQ[:, 6:], see_BQK[:, 6:], Past(first.past, at_BQ[0]).upto(6), wanted=2)
    assert late.logits_BWV.shape == (3, 2, 60)
    assert torch.allclose(late.logits_BWV, whole.logits_BWV[:, -2:], atol=1e-5)
    assert torch.allclose(whole.logits_BWV, upper.run(x_BQD).logits_BWV, atol=1e-5)


def test_an_unchanged_residual_gives_the_same_bits_in_the_same_shape(model, ids_BQ):
    upper = Upper(model, 1)
    x_BQD = upper.residual(ids_BQ[:1]).expand(4, -1, -1).clone()
    at_BQ = torch.arange(11)[None]
    see_BQK = at_BQ[:, :, None] >= at_BQ[:, None, :]
    plain = upper.run(x_BQD, at_BQ, see_BQK, wanted=3).logits_BWV
    x_BQD[2] += 1.0
    other = upper.run(x_BQD, at_BQ, see_BQK, wanted=3).logits_BWV
    assert torch.equal(plain[[0, 1, 3]], other[[0, 1, 3]])
    assert not torch.allclose(plain[2], other[2], atol=1e-3)


def test_model_is_restored_on_error():
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval()
    upper = Upper(model, 1)
    blocks = list(upper.blocks)
    with pytest.raises(RuntimeError):
        upper.run(torch.zeros(1, 5, 7))
    assert list(upper.blocks) == blocks
    assert all(not block._forward_pre_hooks and not block._forward_hooks for block in blocks)


def test_block_tokens_count_positions_times_blocks():
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval()
    upper = Upper(model, 1)
    at_BQ = torch.arange(5)[None]
    see_BQK = at_BQ[:, :, None] >= at_BQ[:, None, :]
    upper.run(torch.randn(2, 5, 32), at_BQ, see_BQK, wanted=1)
    # Block 2 for all five positions of both rows, block 3 for the one that is read out.
    assert upper.block_tokens == 2 * (5 + 1)


def test_architectures_that_cannot_be_run_in_part_are_refused():
    torch.manual_seed(0)
    with pytest.raises(UserError, match="blocks 0 to 3"):
        Upper(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval(), 4)
    config = transformers.Qwen3Config(**SHAPE)
    model = transformers.Qwen3ForCausalLM(config).eval()
    model.config.layer_types = ["linear_attention"] * 4
    with pytest.raises(UserError, match="cannot be run on their own"):
        Upper(model, 1)
