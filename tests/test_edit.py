"""Edits of a forward pass: identity at strength 0, protected positions, the model restored, cross-entropy."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sae_emotions import edit as edits
from sae_emotions.cross_entropy import cross_entropy
from sae_emotions.edit import edited
from sae_emotions.errors import UserError

BLOCK, SPECIAL = 1, (1, 2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def ids_BS():
    return torch.randint(3, 50, (3, 9), generator=torch.Generator().manual_seed(1))


def logits(model, ids_BS, **call):
    with torch.inference_mode():
        return model(input_ids=ids_BS, use_cache=False, **call).logits


def test_strength_zero_is_the_identity_bit_for_bit(model, ids_BS):
    plain = logits(model, ids_BS)
    direction_D = torch.randn(32)
    nothing = [edits.add(direction_D, 0.0), edits.remove(torch.relu, 3, direction_D, 0), lambda x, keep: x.clone()]
    for edit in (None, *nothing):
        with edited(model, BLOCK, edit):
            assert torch.equal(logits(model, ids_BS), plain)


def test_only_allowed_positions_change(model, ids_BS):
    ids_BS[0, 4], ids_BS[1, 2] = 1, 2
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[2, 6:] = 0
    seen: dict[str, torch.Tensor] = {}
    blocks = model.model.layers

    def read(name):
        return lambda module, args, output: seen.__setitem__(name, output)

    handle = blocks[BLOCK].register_forward_hook(read("before"))
    try:
        # The edit even returns garbage elsewhere: the hook must protect what is not its own.
        with edited(model, BLOCK, lambda x, keep: x + 100, SPECIAL):
            after = blocks[BLOCK].register_forward_hook(read("after"))
            logits(model, ids_BS, attention_mask=mask_BS)
            after.remove()
    finally:
        handle.remove()
    changed_BS = (seen["before"] != seen["after"]).any(-1)
    expected_BS = torch.ones(3, 9, dtype=torch.bool)
    expected_BS[:, 0] = False
    expected_BS[0, 4] = expected_BS[1, 2] = False
    expected_BS[2, 6:] = False
    assert torch.equal(changed_BS, expected_BS)


def test_first_real_token_is_protected_under_left_padding():
    mask_BS = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    keep_BS = edits.editable(torch.full((2, 4), 7), mask_BS, ())
    assert keep_BS.tolist() == [[False, False, False, True], [False, True, True, True]]


def test_model_is_restored_on_error(model, ids_BS):
    plain = logits(model, ids_BS)

    def broken(x_BSD, keep_BS):
        raise RuntimeError("broken edit")

    with pytest.raises(RuntimeError, match="broken edit"), edited(model, BLOCK, broken):
        logits(model, ids_BS)
    assert torch.equal(logits(model, ids_BS), plain)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("block", [-1, 4])
def test_unknown_block_is_a_user_error(model, block):
    with pytest.raises(UserError, match="blocks 0 to 3"), edited(model, block, None):
        pass


def test_edits_do_what_they_say():
    g = torch.Generator().manual_seed(2)
    x_BSD, keep_BS = torch.randn(2, 5, 8, generator=g), torch.tensor([[False, True, True, True, True]] * 2)
    d_D = torch.nn.functional.normalize(torch.randn(8, generator=g), dim=0)
    assert torch.allclose(edits.add(d_D, 2.5)(x_BSD, keep_BS) - x_BSD, (2.5 * d_D).expand(2, 5, 8), atol=1e-6)
    assert torch.allclose(edits.project_out(d_D)(x_BSD, keep_BS) @ d_D, torch.zeros(2, 5), atol=1e-6)
    removed = edits.remove(torch.relu, 3, d_D)(x_BSD, keep_BS)
    expected = x_BSD - keep_BS[..., None] * x_BSD[..., 3:4].relu() * d_D
    assert torch.allclose(removed, expected, atol=1e-6)
    assert torch.equal(edits.splice(torch.zeros_like)(x_BSD, keep_BS)[:, 1:], torch.zeros(2, 4, 8))


def test_cross_entropy_matches_the_definition_and_moves_when_the_stream_is_wiped(model, ids_BS):
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[2, 6:] = 0
    losses = torch.log_softmax(logits(model, ids_BS), -1)[:, :-1].gather(-1, ids_BS[:, 1:, None])[..., 0]
    expected = -losses[mask_BS[:, 1:].bool()].mean().item()
    plain, same, wiped = (
        cross_entropy(model, ids_BS, mask_BS, BLOCK, edit)
        for edit in (None, edits.splice(lambda x: x), edits.splice(torch.zeros_like))
    )
    assert plain == pytest.approx(expected, rel=1e-6)
    assert same == plain
    assert wiped != pytest.approx(plain, rel=1e-3)


def test_cross_entropy_refuses_nothing_to_predict_and_left_padding(model, ids_BS):
    with pytest.raises(UserError, match="shorter than two tokens"):
        cross_entropy(model, ids_BS[:, :1], torch.ones(3, 1), BLOCK, None)
    with pytest.raises(UserError, match="on the right"):
        cross_entropy(model, ids_BS, torch.tensor([[0] + [1] * 8] * 3), BLOCK, None)


def test_a_call_that_goes_on_from_a_cache_is_edited_from_its_first_token_on(model, ids_BS):
    from transformers import DynamicCache

    ids_BS[0, 5] = SPECIAL[0]
    with edited(model, BLOCK, edits.add(torch.full((32,), 0.5), 1), SPECIAL):
        whole = logits(model, ids_BS)
        past = DynamicCache()
        with torch.inference_mode():
            parts = [
                model(input_ids=part, cache=past, use_cache=True).logits for part in ids_BS.split([4, 1, 4], dim=1)
            ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
