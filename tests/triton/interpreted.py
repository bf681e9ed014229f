"""The engine in Triton against the one in PyTorch, under Triton's interpreter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sae_emotions.sparse import step, triton_engine, triton_screen
from sae_emotions.sparse.graphs import Graphed
from sae_emotions.sparse.plain import Plain
from sae_emotions.sparse.shapes import Active, AdamRate, Engine, Weights
from sae_emotions.sparse.step import Rule, apply_adam, loss_and_gradient
from sae_emotions.sparse.triton_engine import Triton
from tests.test_sparse_topk import close, outlying, weights_of, zeros

SHAPES = [(1, 16, 40, 1), (5, 24, 100, 6), (3, 70, 201, 9), (4, 20, 12, 12)]
"""Rows, width, latents, active latents a row."""


def made(shape: tuple[int, int, int, int], seed: int = 0) -> tuple[torch.Tensor, Weights, torch.Tensor]:
    rows, width, latents, _ = shape
    generator = torch.Generator().manual_seed(seed)
    weights = weights_of(width, latents, generator)
    return outlying(rows, width, generator), weights, weights.Wd_MD.norm(dim=1)


def scores(active: Active, norm_M: torch.Tensor) -> torch.Tensor:
    return Plain().scores(active, norm_M).view(len(active.start_B1) - 1, -1).sort(-1).values


def same(mine: Active, other: Active) -> None:
    assert torch.equal(mine.start_B1, other.start_B1)
    assert torch.equal(mine.index_P, other.index_P)
    assert torch.allclose(mine.value_P, other.value_P, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_top(shape: tuple[int, int, int, int], seed: int) -> None:
    x_BD, weights, norm_M = made(shape, seed)
    found = Triton(recorder=None).top(x_BD, weights, norm_M, shape[3])
    same(found, Plain().top(x_BD, weights, norm_M, shape[3]))
    assert found.unsure == 0


def test_top_in_several_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_screen, "PRODUCT", 1)
    x_BD, weights, norm_M = made((130, 16, 24, 2))
    same(Triton(recorder=None).top(x_BD, weights, norm_M, 2), Plain().top(x_BD, weights, norm_M, 2))


def test_top_of_equal_and_negative_scores() -> None:
    x_BD, weights, norm_M = made((5, 24, 100, 6))
    weights = Weights(*(torch.cat([one[:50], one[:50]]) if len(one) == 100 else one for one in weights))
    found = Triton(recorder=None).top(x_BD, weights, norm_M[:50].repeat(2), 7)
    other = Plain().top(x_BD, weights, norm_M[:50].repeat(2), 7)
    assert torch.allclose(scores(found, norm_M[:50].repeat(2)), scores(other, norm_M[:50].repeat(2)), rtol=1e-4)
    assert (found.index_P.view(5, 7).diff(dim=1) > 0).all()
    below = weights._replace(be_M=weights.be_M - 1e4)
    assert (Triton(recorder=None).top(x_BD, below, norm_M, 6).value_P == 0).all()


def test_rows_that_the_screen_cannot_settle_are_chosen_in_float32() -> None:
    """Every latent scores almost the same, so that more pass than there are places."""
    x_BD, weights, _ = made((3, 24, 100, 1))
    near_MD = weights.We_MD[:1] + 1e-6 * weights.We_MD
    weights = weights._replace(We_MD=near_MD, be_M=torch.zeros(100))
    found = Triton(recorder=None).top(x_BD, weights, torch.ones(100), 1)
    other = Plain().top(x_BD, weights, torch.ones(100), 1)
    assert found.unsure == 3
    same(found, other)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_what_is_no_number_shows() -> None:
    x_BD, weights, norm_M = made((3, 24, 100, 2))
    x_BD[1] = torch.nan
    found = Triton(recorder=None).top(x_BD, weights, norm_M, 2)
    assert found.unsure == 1
    assert found.value_P.isnan().tolist() == [False, False, True, True, False, False]
    weights.We_MD[5] = torch.nan
    assert Triton(recorder=None).top(x_BD, weights, norm_M, 2).unsure == 3


def test_the_screen_leaves_out_nothing_and_little_else_in() -> None:
    x_BD, weights, norm_M = made((4, 70, 150, 0))
    exact_BM = ((x_BD - weights.bd_D).double() @ weights.We_MD.double().t() + weights.be_M) * norm_M
    limit = float(exact_BM.quantile(0.9))
    screen = Triton()._screen(weights, weights.be_M, norm_M)
    found = triton_screen.candidates(x_BD, weights, screen, norm_M, 0, limit, 150)
    for row in range(4):
        passed = set(found.latent_BC[row, : found.count_B[row]].tolist())
        wanted = set((exact_BM[row] >= limit).nonzero()[:, 0].tolist())
        assert wanted <= passed
        assert len(passed) <= len(wanted) + 3
    full = found.score_BC > -torch.inf
    assert torch.equal(full.sum(1), found.count_B)


@pytest.mark.parametrize("guess", [None, 0.8, 1.0, 1.4, 3.0, 100.0])
def test_top_of_batch(guess: float | None) -> None:
    """From a good guess, from bad ones, and (100) where none of them is low enough."""
    x_BD, weights, norm_M = made((7, 24, 60, 3))
    other = Plain().top_of_batch(x_BD, weights, norm_M, 3, None)
    least = float(Plain().scores(other, norm_M).min())
    about = None if guess is None else guess * least
    same(Triton(recorder=None).top_of_batch(x_BD, weights, norm_M, 3, about), other)


def test_top_of_batch_with_few_positive_scores_or_many_in_one_row() -> None:
    x_BD, weights, norm_M = made((5, 24, 40, 8))
    few = weights._replace(be_M=weights.be_M - 150)
    found = Triton(recorder=None).top_of_batch(x_BD, few, norm_M, 8, None)
    assert 0 < len(found.index_P) < 40
    same(found, Plain().top_of_batch(x_BD, few, norm_M, 8, None))
    x_BD[0] *= 100
    engine = Triton(recorder=None)
    same(engine.top_of_batch(x_BD, weights, norm_M, 1, 1.0), Plain().top_of_batch(x_BD, weights, norm_M, 1, None))
    assert engine._places > 8


def test_above() -> None:
    x_BD, weights, _ = made((5, 24, 60, 0))
    threshold_M = 40 * torch.rand(60, generator=torch.Generator().manual_seed(1))
    engine = Triton(fixed=True, recorder=None)
    for _ in range(2):
        same(engine.above(x_BD, weights, threshold_M), Plain().above(x_BD, weights, threshold_M))


@pytest.mark.parametrize(("levels", "part"), [(1, 256), (3, 256), (2, 4)])
@pytest.mark.parametrize("shape", [(9, 24, 40, 5), (6, 150, 33, 20)], ids=str)
def test_errors_and_gradients(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int, int], levels: int, part: int
) -> None:
    """Some rows without a pair, some pairs of value 0, latents that fire in every row and latents that fire in none."""
    monkeypatch.setattr(triton_engine, "PART", part)
    x_BD, weights, _ = made(shape)
    generator = torch.Generator().manual_seed(2)
    acts_BM = torch.rand(shape[0], shape[2], generator=generator)
    acts_BM[torch.rand(acts_BM.shape, generator=generator) > shape[3] / shape[2]] = 0
    acts_BM[:, 0] = 1
    acts_BM[2], acts_BM[:, 3] = 0, 0
    active = Active.of(acts_BM)
    active.value_P[::5] = 0
    level_M = torch.arange(shape[2]) * levels // shape[2]
    engine, plain = Triton(recorder=None), Plain()
    other = plain.errors(x_BD, weights, active, level_M)
    for one, two in zip(engine.errors(x_BD, weights, active, level_M), other, strict=True):
        assert one.shape == two.shape
        assert close(one, two) < 1e-5
    gradients = [each.gradients(x_BD, weights, active, other, level_M) for each in (engine, plain)]
    for one, two in zip(*gradients, strict=True):
        assert one.shape == two.shape
        assert close(one, two) < 1e-5
    assert float(engine.squared_norm(gradients[1])) == pytest.approx(plain.squared_norm(gradients[1]), rel=1e-5)
    assert torch.equal(engine.fired(active, shape[2]), plain.fired(active, shape[2]))


def test_adam() -> None:
    _, weights, _ = made((1, 70, 40, 1))
    gradient = Weights(*(torch.randn_like(one) for one in weights))
    after = []
    for engine in (Triton(recorder=None), Plain()):
        held = [Weights(*(one.clone() for one in weights)), zeros(weights), zeros(weights)]
        for number in (1, 2, 3):
            rate = AdamRate(1e-2, 0.9, 0.999, 1e-8, number, torch.tensor(0.5) if isinstance(engine, Triton) else 0.5)
            engine.adam(held[0], gradient, held[1], held[2], rate)
        after.append(held)
    for mine, other in zip(*after, strict=True):
        for one, two in zip(mine, other, strict=True):
            assert torch.allclose(one, two, rtol=1e-5, atol=1e-7)


def recorder(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """What a CUDA graph does, as seen from outside: each launch writes the memory that the first one returned."""
    made: Any = None
    launches = 0

    def replay() -> None:
        nonlocal launches
        launches += 1
        again = made if launches == 1 else work()
        if made is not None:
            for mine, new in zip(made, again, strict=True):
                mine.copy_(new)

    made = work()
    return replay, made


def trained(engine: Engine, rule: Rule, steps: int) -> Weights:
    """Weights after some steps, the last of fewer rows; a few latents are dead."""
    _, weights, _ = made((1, 16, 24, 1))
    mean, square, dead_M = zeros(weights), zeros(weights), torch.arange(24) % 9 == 0
    generator = torch.Generator().manual_seed(3)
    guess = None
    for number in range(1, steps + 1):
        x_BD = torch.randn(6 if number < steps else 3, 16, generator=generator)
        norm_M = engine.norms(weights.Wd_MD)
        x_BD = engine.scaled(x_BD, 2.0)
        found = loss_and_gradient(engine, x_BD, weights, norm_M, rule, dead_M, guess)
        guess = float(found.score_P.min()) if rule.of_batch else None
        most = 1e6 if number == 2 else 1.0  # once nothing is clipped
        apply_adam(engine, weights, found.gradient, mean, square, AdamRate(1e-2, 0.9, 0.999, 1e-8, number, 1.0), most)
    return weights


@pytest.mark.parametrize("of_batch", [False, True])
def test_training_steps_with_and_without_graphs(of_batch: bool) -> None:
    rule = Rule(4, of_batch, torch.arange(24) * (3 if of_batch else 1) // 24, 1 / 32)
    graphed = Triton(recorder=recorder)
    after = [trained(engine, rule, 5) for engine in (Plain(), Triton(recorder=None), graphed)]
    for plain, launched, replayed in zip(*after, strict=True):
        assert torch.allclose(launched, plain, rtol=1e-4, atol=1e-5)
        assert torch.equal(replayed, launched)
    for each in (graphed._errors, graphed._gradients, graphed._adam):
        assert isinstance(each, Graphed) and each._kept is not None


def test_a_gpu_gets_this_engine_where_triton_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert isinstance(step.engine_for(cuda, step.WORTH), Triton)
    assert step.engine_for(cuda, step.WORTH, fixed=True).fixed  # type: ignore[attr-defined]
    assert isinstance(step.engine_for(cuda, step.WORTH - 1), Plain)
    assert "Triton" in step.spoken(cuda)
    monkeypatch.setattr(step, "find_spec", lambda name: None)
    assert isinstance(step.engine_for(cuda, step.WORTH), Plain)
    assert "PyTorch on the cuda" in step.spoken(cuda)
