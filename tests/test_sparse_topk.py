"""The sparse step: its two engines against each other, against SAELens' dense one, and against float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_emotions import vector
from sae_emotions.adapters.saelens import trainer, training_sae
from sae_emotions.config import DictionaryConfig
from sae_emotions.sparse import screen
from sae_emotions.sparse import step as sparse_step
from sae_emotions.sparse.compiled import Compiled
from sae_emotions.sparse.plain import Plain, largest
from sae_emotions.sparse.shapes import AdamRate, Weights

KINDS = ("vnni", "int8", "bfloat16", "float32") if vector.there() else ("int8", "bfloat16", "float32")
NESTED = {"matryoshka_widths": [32, 100, 256]}
FAMILY: list[tuple[str, dict[str, Any]]] = [
    ("topk", {}),
    ("topk", {"rescale_acts_by_decoder_norm": False}),
    ("batchtopk", {}),
    ("matryoshka", NESTED),
]


def classes(name: str) -> tuple[Any, Any, Any, Any]:
    """Our class and settings, SAELens' class and settings."""
    import sae_lens

    from sae_emotions.adapters import saelens_sparse as ours

    return {
        "topk": (
            ours.SparseTopKTrainingSAE,
            ours.SparseTopKTrainingSAEConfig,
            sae_lens.TopKTrainingSAE,
            sae_lens.TopKTrainingSAEConfig,
        ),
        "batchtopk": (
            ours.SparseBatchTopKTrainingSAE,
            ours.SparseBatchTopKTrainingSAEConfig,
            sae_lens.BatchTopKTrainingSAE,
            sae_lens.BatchTopKTrainingSAEConfig,
        ),
        "matryoshka": (
            ours.SparseMatryoshkaTrainingSAE,
            ours.SparseMatryoshkaTrainingSAEConfig,
            sae_lens.MatryoshkaBatchTopKTrainingSAE,
            sae_lens.MatryoshkaBatchTopKTrainingSAEConfig,
        ),
    }[name]


def pair(name: str, arguments: dict[str, Any], d_in: int = 24, d_sae: int = 256, k: int = 6) -> tuple[Any, Any]:
    our_class, our_config, their_class, their_config = classes(name)
    torch.manual_seed(0)
    ours = our_class(our_config(d_in=d_in, d_sae=d_sae, k=k, **arguments))
    for parameter in ours.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    theirs = their_class(their_config(d_in=d_in, d_sae=d_sae, k=k, **arguments))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def outlying(rows: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Rows with a few dimensions a hundred times the others, like a residual stream's."""
    x_BD = torch.randn(rows, width, generator=generator)
    x_BD[:, :2] = 100 + 5 * x_BD[:, :2]
    return x_BD


def weights_of(width: int, latents: int, generator: torch.Generator) -> Weights:
    We_MD = torch.randn(latents, width, generator=generator)
    Wd_MD = We_MD / We_MD.norm(dim=1, keepdim=True) * (0.5 + torch.rand(latents, 1, generator=generator))
    return Weights(
        We_MD, 0.1 * torch.randn(latents, generator=generator), Wd_MD, torch.randn(width, generator=generator)
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.sampled_from([48, 64, 100, 640]), st.integers(1, 12), st.integers(0, 1000))
def test_group_maxima_select_exactly_the_largest(rows: int, latents: int, k: int, seed: int) -> None:
    pre_BM = torch.randn(rows, latents, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(largest(pre_BM, k), pre_BM.topk(k, -1).indices.sort(-1).values)


@pytest.fixture(scope="module")
def engines() -> dict[str, Compiled]:
    return {kind: Compiled(kind=kind) for kind in KINDS}  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 300),
    latents=st.sampled_from([100, 999, 1024, 3000]),
    k=st.sampled_from([1, 8, 20]),
    levels=st.sampled_from([1, 3]),
    of_batch=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_engines_agree(
    engines: dict[str, Compiled], kind: str, rows: int, latents: int, k: int, levels: int, of_batch: bool, seed: int
) -> None:
    """Selection, errors, gradients and update, for any number of rows and latents."""
    generator = torch.Generator().manual_seed(seed)
    weights = weights_of(16, latents, generator)
    x_BD = outlying(rows, 16, generator)
    norm_M = weights.Wd_MD.norm(dim=1)
    level_M = torch.arange(latents) * levels // latents
    fast, plain = engines[kind], Plain()
    if of_batch:
        mine = fast.top_of_batch(x_BD, weights, norm_M, k, None)
        other = plain.top_of_batch(x_BD, weights, norm_M, k, None)
    else:
        mine, other = fast.top(x_BD, weights, norm_M, k), plain.top(x_BD, weights, norm_M, k)
    same = torch.equal(mine.start_B1, other.start_B1) and torch.equal(mine.index_P, other.index_P)
    if not same:  # two scores within float32 rounding of one another: one pair may have changed places
        ours, theirs = (set(zip(row_of(a).tolist(), a.index_P.tolist(), strict=True)) for a in (mine, other))
        assert len(ours ^ theirs) <= 4
        return
    assert torch.allclose(mine.value_P, other.value_P, rtol=1e-4, atol=1e-3)
    mine_off, other_off = (engine.errors(x_BD, weights, other, level_M) for engine in (fast, plain))
    for one, two in zip(mine_off, other_off, strict=True):
        assert close(one, two) < 1e-5
    gradients = [engine.gradients(x_BD, weights, other, other_off, level_M) for engine in (fast, plain)]
    for one, two in zip(*gradients, strict=True):
        assert close(one, two) < 2e-6
    after = []
    for engine in (fast, plain):
        held = [Weights(*(tensor.clone() for tensor in weights)), *(zeros(weights) for _ in range(2))]
        for number in (1, 2):
            engine.adam(held[0], gradients[1], held[1], held[2], AdamRate(1e-2, 0.9, 0.999, 1e-8, number, 0.5))
        after.append(held[0])
    for one, two in zip(*after, strict=True):
        assert torch.allclose(one, two, atol=1e-5)
    assert fast.squared_norm(gradients[1]) == pytest.approx(plain.squared_norm(gradients[1]), rel=1e-5)


def row_of(active: Any) -> torch.Tensor:
    return torch.arange(len(active.start_B1) - 1).repeat_interleave(active.start_B1.diff())


def close(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).norm() / two.norm().clamp_min(1e-20))


def zeros(weights: Weights) -> Weights:
    return Weights(*(torch.zeros_like(tensor) for tensor in weights))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", [True, False])
def test_the_selection_is_that_of_float64(kind: str, stored: bool) -> None:
    """Wherever the gap to the next latent is wider than float32 can tell; what int8 stored is screened without loss."""
    generator = torch.Generator().manual_seed(3)
    weights = weights_of(64, 4096, generator)
    x_BD, origin_D = outlying(600, 64, generator), torch.zeros(64)
    origin_D[:2] = 100
    if stored:
        off_BD = x_BD - origin_D
        scale_B = off_BD.abs().amax(1, keepdim=True) / 127
        x_BD = (off_BD / scale_B).round() * scale_B + origin_D
    fast = Compiled(origin_D if stored else None, kind)  # type: ignore[arg-type]
    norm_M = weights.Wd_MD.norm(dim=1)
    active = fast.top(x_BD, weights, norm_M, 16)
    exact_BM = (x_BD - weights.bd_D).double() @ weights.We_MD.double().t() + weights.be_M
    best = (exact_BM * norm_M).topk(17, -1)
    want_BK = best.indices[:, :16].sort(-1).values
    differs_B = (active.index_P.view(-1, 16) != want_BK).any(-1)
    near_B = best.values[:, 15] - best.values[:, 16] < 1e-3
    assert not (differs_B & ~near_B).any()
    assert int(near_B.sum()) < 60
    fast.threads.close()


@pytest.mark.parametrize(("own", "screening", "wanted"), [(1e-9, 0, "vnni"), (1e3, 0, "torch"), (1e3, 1e6, "vnni")])
def test_the_screen_is_what_this_machine_is_fastest_at(
    monkeypatch: pytest.MonkeyPatch, own: float, screening: float, wanted: str
) -> None:
    """Our own product where it is there and faster; torch's only if it is faster with the reading of bounds on top."""
    monkeypatch.setattr(screen, "_own_product", lambda: own)
    monkeypatch.setattr(screen, "_screening", lambda product: screening)
    monkeypatch.setattr(screen, "seconds_of", lambda work, budget: 1.0)
    monkeypatch.setattr(vector, "there", lambda: True)
    assert (screen.fastest.__wrapped__() == "vnni") == (wanted == "vnni")
    monkeypatch.setattr(vector, "there", lambda: False)
    assert screen.fastest.__wrapped__() != "vnni"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spare", [0, 64])
def test_what_is_found_does_not_depend_on_how_many_candidates_are_asked_for(kind: str, spare: int) -> None:
    """A row whose first candidates do not prove their choice is looked at again: only where places are too few is it unsure."""
    generator = torch.Generator().manual_seed(4)
    weights, fast = weights_of(64, 4096, generator), Compiled(kind=kind)  # type: ignore[arg-type]
    norm_M = torch.ones(4096)
    x_BD = outlying(512, 64, torch.Generator().manual_seed(5))
    want = Compiled(kind="float32").top(x_BD, weights, norm_M, 16)
    fast._spare = spare
    found = fast.top(x_BD, weights, norm_M, 16)
    assert torch.equal(found.index_P, want.index_P)
    assert torch.equal(found.value_P, want.value_P)
    if spare:
        assert found.unsure < 5
    fast.threads.close()


@pytest.mark.parametrize("dead", [0, 3, 60])
@pytest.mark.parametrize(("name", "arguments"), FAMILY)
@pytest.mark.parametrize("compiled", [True, False])
def test_loss_and_gradients_are_those_of_saelens(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, name: str, arguments: dict[str, Any], dead: int
) -> None:
    from sae_lens.saes.sae import TrainStepInput

    monkeypatch.setattr(sparse_step, "WORTH", 0 if compiled else 2**60)
    ours, theirs = pair(name, arguments)
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
    assert isinstance(ours._engine, Compiled if compiled else Plain)
    assert torch.allclose(found[0].loss, found[1].loss, rtol=1e-5)
    assert torch.allclose(found[0].feature_acts.to_dense(), found[1].feature_acts, atol=1e-5)
    assert torch.allclose(found[0].sae_out, found[1].sae_out, atol=1e-5)
    assert {key: float(value.detach()) for key, value in found[0].losses.items()} == pytest.approx(
        {key: float(value.detach()) for key, value in found[1].losses.items()}, rel=1e-4
    )
    for (parameter, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert close(mine.grad, other.grad) < 1e-6, parameter


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_training_curve_is_that_of_saelens(monkeypatch: pytest.MonkeyPatch, name: str, compiled: bool) -> None:
    monkeypatch.setattr(sparse_step, "WORTH", 0 if compiled else 2**60)
    config = DictionaryConfig(name="d", block=0, d_sae=256, k=6, batch=128, lr=1e-3, architecture=name)
    mix_FD = torch.randn(40, 24, generator=torch.Generator().manual_seed(2))
    curves, weights = [], []
    for own in (True, False):
        sae = training_sae(config, 24, {}, seed=0)
        if not own:
            their_class, their_config = classes(name.removesuffix("_batchtopk"))[2:]
            shared = {key: getattr(sae.cfg, key) for key in ("d_in", "d_sae", "k")}
            nested = {"matryoshka_widths": sae.cfg.matryoshka_widths} if name.startswith("matr") else {}
            other = their_class(their_config(**shared, **nested))
            other.load_state_dict(sae.state_dict())
            sae = other
        made = trainer(config, sae, 128 * 40, 1.0, "cpu")
        data = torch.Generator().manual_seed(1)
        losses = []
        for _ in range(40):
            x_BD = torch.randn(128, 40, generator=data).relu() @ mix_FD
            losses.append(made.step(x_BD).loss.item())
            made.n_training_steps += 1
        curves.append(losses)
        weights.append(sae.W_dec.detach())
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert torch.allclose(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-3)
    assert close(*weights) < 1e-2


def test_saelens_reads_what_it_saves_and_goes_on_training(tmp_path: Path) -> None:
    """Its registry knows the class; a checkpoint and the inference form load in SAELens alone."""
    from sae_lens import SAE, TrainingSAE

    for name, arguments in FAMILY:
        ours, _ = pair(name, arguments)
        ours.save_model(tmp_path / "training")
        again = TrainingSAE.load_from_disk(tmp_path / "training", device="cpu")
        assert type(again) is type(ours)
        assert torch.equal(again.W_enc, ours.W_enc)
        ours.save_inference_model(tmp_path / "inference")
        loaded = SAE.load_from_disk(tmp_path / "inference", device="cpu")
        x_BD = torch.randn(50, 24)
        if name == "topk":
            assert torch.allclose(loaded.encode(x_BD), ours.encode(x_BD), atol=1e-5)


def test_settings_that_the_step_cannot_follow_are_refused() -> None:
    our_class, our_config = classes("topk")[:2]
    with pytest.raises(ValueError, match="apply_b_dec_to_input"):
        our_class(our_config(d_in=8, d_sae=32, k=2, apply_b_dec_to_input=False))
    our_class, our_config = classes("matryoshka")[:2]
    with pytest.raises(ValueError, match="use_matryoshka_aux_loss"):
        our_class(our_config(d_in=8, d_sae=32, k=2, matryoshka_widths=[32], use_matryoshka_aux_loss=True))
