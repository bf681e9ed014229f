"""The sparse TopK step against SAELens' own dense one: same selection, loss, gradients, training curve."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_emotions.adapters.saelens import trainer, training_sae
from sae_emotions.adapters.saelens_sparse import SparseTopKTrainingSAE, largest
from sae_emotions.config import DictionaryConfig


def pair(d_in: int = 24, d_sae: int = 256, k: int = 6) -> tuple[Any, Any]:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    config = TopKTrainingSAEConfig(
        d_in=d_in, d_sae=d_sae, k=k, rescale_acts_by_decoder_norm=False, decoder_init_norm=1.0
    )
    torch.manual_seed(0)
    ours = SparseTopKTrainingSAE(config)
    for parameter in ours.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    theirs = TopKTrainingSAE(config)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.sampled_from([48, 64, 100, 640]), st.integers(1, 12), st.integers(0, 1000))
def test_group_maxima_select_exactly_the_largest(rows: int, latents: int, k: int, seed: int) -> None:
    pre_BM = torch.randn(rows, latents, generator=torch.Generator().manual_seed(seed))
    values, index = largest(pre_BM, k)
    want = pre_BM.topk(k, -1)
    assert torch.equal(values.sort(-1, descending=True).values, want.values)
    assert torch.equal(index.sort(-1).values, want.indices.sort(-1).values)


@pytest.mark.parametrize("dead", [0, 3, 60])
def test_loss_and_gradients_are_those_of_saelens(dead: int) -> None:
    from sae_lens.saes.sae import TrainStepInput

    ours, theirs = pair()
    x_BD = torch.randn(300, 24)
    mask = torch.zeros(256, dtype=torch.bool)
    mask[:dead] = True
    found = []
    for sae in (ours, theirs):
        step = TrainStepInput(
            sae_in=x_BD, dead_neuron_mask=mask, coefficients={}, n_training_steps=0, is_logging_step=False
        )
        output = sae.training_forward_pass(step)
        output.loss.backward()
        found.append(output)
    assert torch.allclose(found[0].loss, found[1].loss, rtol=1e-5)
    assert torch.allclose(found[0].feature_acts.to_dense(), found[1].feature_acts, atol=1e-5)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        error = float((mine.grad - other.grad).norm() / other.grad.norm())
        assert error < 2e-6, (name, error)


def test_the_training_curve_is_that_of_saelens() -> None:
    config = DictionaryConfig(name="d", block=0, d_sae=256, k=6, batch=128, lr=1e-3)
    mix_FD = torch.randn(40, 24)
    curves = []
    for own in (True, False):
        sae = training_sae(config, 24, {}, seed=0)
        if not own:
            from sae_lens import TopKTrainingSAE

            sae.__class__ = TopKTrainingSAE
        made = trainer(config, sae, 128 * 40, 1.0, "cpu")
        data = torch.Generator().manual_seed(1)
        losses = []
        for _ in range(40):
            x_BD = torch.randn(128, 40, generator=data).relu() @ mix_FD
            losses.append(made.step(x_BD).loss.item())
            made.n_training_steps += 1
        curves.append(losses)
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert torch.allclose(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-3)
