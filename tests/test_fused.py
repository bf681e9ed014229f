"""The fused forward pass: the model's own numbers, window by window; taken where it is right, and where it pays."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_emotions.config import HarvestConfig
from sae_emotions.errors import UserError
from sae_emotions.harvest import fused, kernels, llama, readers
from sae_emotions.harvest.batching import Window, batches, packed, windows
from sae_emotions.harvest.parity import in_float32, parity, strays
from sae_emotions.harvest.readers import Eager, OnThreads, Reading
from sae_emotions.threads import Threads, prepared

SHAPE = {
    "vocab_size": 90,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LENGTHS = (2, 3, 17, 40, 64, 65, 130)


def made(name: str = "Llama", dtype: torch.dtype = torch.float32, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SHAPE | changes)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval().requires_grad_(False).to(dtype)


def cut_of(lengths, seed: int = 0) -> list[Window]:
    rng = np.random.default_rng(seed)
    return [Window(n, 0, rng.integers(0, 90, length)) for n, length in enumerate(lengths)]


@pytest.fixture
def reader(request: pytest.FixtureRequest):
    opened = []

    def of(model, deepest: int = 3, context: int = 130) -> OnThreads:
        opened.append(OnThreads(model, deepest, context))
        return opened[-1]

    yield of
    for one in opened:
        one.close()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Llama", {}),
        ("Llama", {"num_key_value_heads": 6}),
        ("Llama", {"num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 0.1}),
        ("Llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32}}),
        ("Mistral", {"sliding_window": None}),
    ],
)
def test_it_gives_the_models_own_numbers(reader, name, changes):
    model = made(name, **changes)
    assert llama.unlike(model) is None
    cut = cut_of(LENGTHS)
    own = Eager(model).read(cut, (0, 2, 3))
    found = reader(model).read(cut, (0, 2, 3))
    assert found.keys() == own.keys()
    for block in own:
        torch.testing.assert_close(found[block], own[block], rtol=1e-5, atol=2e-5)


def test_in_bfloat16_it_strays_less_than_the_models_own_forward(reader):
    model = made(dtype=torch.bfloat16)
    cut = cut_of(LENGTHS)
    found = parity(model, reader(model), cut, torch.ones(sum(LENGTHS), dtype=torch.bool), (1, 3))
    assert found is not None
    for one in found.values():
        assert 1e-4 < one["relative_error"] < one["eager"]["relative_error"] < 0.03
        assert one["cosine"] > one["eager"]["cosine"] > 0.999


def test_no_window_sees_another(reader):
    """A batch of windows equals each window alone, whatever memory a longer batch left behind."""
    model = made()
    opened = reader(model)
    opened.read(cut_of((130, 130, 130), seed=9), (3,))
    cut = cut_of(LENGTHS)
    together = opened.read(cut, (3,))[3].split(list(LENGTHS))
    for window, x_ND in zip(cut, together, strict=True):
        torch.testing.assert_close(opened.read([window], (3,))[3], x_ND, rtol=1e-5, atol=1e-5)


def test_no_position_sees_a_later_one(reader):
    opened = reader(made())
    (window,) = cut_of((100,))
    changed = window._replace(tokens=np.append(window.tokens[:70], window.tokens[70:] + 1) % 90)
    a_ND, b_ND = (opened.read([one], (3,))[3] for one in (window, changed))
    torch.testing.assert_close(a_ND[:70], b_ND[:70], rtol=1e-5, atol=1e-5)
    assert (a_ND[70:] - b_ND[70:]).norm(dim=1).min() > 0.1


def test_the_model_still_gives_its_own_numbers_and_holds_each_weight_once(reader):
    model = made()
    ids = torch.arange(20)[None]
    before = model(ids).logits
    opened = reader(model)
    assert torch.equal(model(ids).logits, before)
    assert model.model.layers[1].mlp.up_proj.weight.data_ptr() != model.model.layers[1].mlp.gate_proj.weight.data_ptr()
    weights = {one.untyped_storage().data_ptr() for one in model.model.layers.parameters()}
    products = [w for block in opened.fused.blocks for w in (block.qkv_DE, block.out_ED, block.both_DF, block.down_FD)]
    assert {w.untyped_storage().data_ptr() for w in products} <= weights


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("Qwen3", {}, "another kind"),
        ("Qwen2", {}, "another kind"),
        ("Gemma2", {}, "another kind"),
        ("Mistral", {"sliding_window": 64}, "sliding window"),
        ("Llama", {"attention_bias": True}, "biases"),
        ("Llama", {"mlp_bias": True}, "biases"),
        ("Llama", {"hidden_act": "gelu"}, "activation gelu"),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "length"),
    ],
)
def test_other_architectures_are_read_by_their_own_forward(monkeypatch, name, changes, why):
    monkeypatch.setattr(readers, "WORTH", 0)
    model = made(name, **changes)
    choice = Reading(model, HarvestConfig(blocks=(1,))).of(1000)
    assert choice.reader.path == "eager"
    assert why in choice.why


def test_a_pass_that_gives_other_numbers_is_not_taken(monkeypatch):
    """As a model would look that scales its attention in a way that no module and no setting shows."""
    monkeypatch.setattr(readers, "WORTH", 0)
    model = made()
    made_right = llama.fused

    def made_wrong(*args):
        found = made_right(*args)
        found.heads = found.heads._replace(scale=found.heads.scale * 1.01)
        return found

    reading = Reading(model, HarvestConfig(blocks=(1,)))
    assert reading.of(1000).reader.path == "fused"
    reading.close()
    monkeypatch.setattr(llama, "fused", made_wrong)
    choice = Reading(model, HarvestConfig(blocks=(1,))).of(1000)
    assert choice.reader.path == "eager"
    assert "off by" in choice.why


def test_it_is_taken_where_it_pays_and_numba_is_there(monkeypatch):
    model, how = made(), HarvestConfig(blocks=(1,))
    assert Reading(model, how).of(1000).why == "the texts are short"
    monkeypatch.setattr(readers, "WORTH", 0)
    monkeypatch.setattr(readers, "find_spec", lambda name: None)
    assert Reading(model, how).of(1000).why == "numba is not installed"
    assert Reading(model, how, begun="eager").of(1000).reader.path == "eager"
    with pytest.raises(UserError, match="numba is not installed"):
        Reading(model, how, begun="fused").of(1000)
    assert "own" in readers.spoken(torch.device("cpu"))
    monkeypatch.undo()
    assert "fused" in readers.spoken(torch.device("cpu"))
    assert Reading(made(dtype=torch.float16), how, begun=None)._model.dtype == torch.float16


def test_what_is_checked_is_read_as_it_was_where_that_can_be_had(monkeypatch):
    model, how = made(), HarvestConfig(blocks=(1,))
    found = readers.alike(model, how, "fused")
    found.close()
    assert (found.path, readers.alike(model, how, "eager").path) == ("fused", "eager")
    monkeypatch.setattr(readers, "find_spec", lambda name: None)
    assert readers.alike(model, how, "fused").path == "eager"


def test_other_types_are_read_by_their_own_forward(monkeypatch):
    monkeypatch.setattr(readers, "WORTH", 0)
    assert Reading(made(dtype=torch.float64), HarvestConfig(blocks=(1,))).of(1).why == "the model runs in float64"


def test_float32_for_a_while_leaves_the_model_as_it_was():
    model = made(dtype=torch.bfloat16)
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.float() * 1.0001
    before = {name: one.data_ptr() for name, one in [*model.named_parameters(), *model.named_buffers()]}

    def interrupted() -> None:
        with in_float32(model):
            assert model.dtype == torch.float32
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    after = {name: one.data_ptr() for name, one in [*model.named_parameters(), *model.named_buffers()]}
    assert after == before
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_strays_are_measured_on_all_rows():
    exact_ND = torch.eye(4) * 2
    assert strays(exact_ND, exact_ND) == {"cosine": 1.0, "relative_error": 0.0}
    found = strays(exact_ND + 0.2 * torch.eye(4).roll(1, 0), exact_ND)
    assert found["relative_error"] == pytest.approx(0.1)
    assert found["cosine"] == pytest.approx(1 / 1.01**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loops_equal_torch(dtype):
    torch.manual_seed(1)
    g_NF, u_NF = 5 * torch.randn(7, 90), torch.randn(7, 90)
    g_NF[0, :4] = torch.tensor([-300.0, 300.0, 0.0, -88.0])
    both, out = (torch.cat([g_NF, u_NF], 1).to(dtype), torch.empty(7, 90, dtype=dtype))
    kernels.gate(_numpy(both), _numpy(out))
    exact = torch.nn.functional.silu(both[:, :90].double()) * both[:, 90:].double()
    rtol = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(out.double(), exact, rtol=rtol, atol=1e-30)
    x_ND, y_ND, w_D = torch.randn(5, 70), torch.randn(5, 70).to(dtype), torch.rand(70)
    normed, summed = torch.empty(5, 70, dtype=dtype), x_ND + y_ND.float()
    kernels.norm(x_ND.numpy(), _numpy(y_ND), True, w_D.numpy(), np.float32(1e-5), _numpy(normed))
    assert torch.equal(x_ND, summed)
    exact = torch.nn.functional.rms_norm(summed.double(), (70,), w_D.double(), 1e-5)
    torch.testing.assert_close(normed.double(), exact, rtol=rtol, atol=1e-30)


def test_bfloat16_is_rounded_as_torch_rounds_it():
    x_N = torch.randn(4096) * 10.0 ** torch.randint(-6, 6, (4096,))
    x_N[:4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 0.0, -(1 + 2**-8)])  # ties, to the even neighbour
    ones, out = torch.ones(1, 1, 4096, 1, 1, dtype=torch.bfloat16), torch.empty(4096, 1, dtype=torch.bfloat16)
    kernels.gather(_numpy(ones), x_N.view(1, 1, 4096, 1).numpy(), np.array([0]), np.array([4096]), 0, _numpy(out))
    assert torch.equal(out[:, 0], x_N.bfloat16())


def test_weights_of_attention_equal_torch():
    torch.manual_seed(2)
    scores = 8 * torch.randn(2, 3, 5 * 2, 100)  # two heads share a key head: places 95 to 99
    length_W, over = np.array([100, 97]), np.empty((2, 3, 5, 2), np.float32)
    exact = scores.double().mul(np.log(2)).view(2, 3, 5, 2, 100)
    for place in range(5):
        exact[:, :, place, :, 95 + place + 1 :] = -torch.inf
    kernels.softmax(scores.numpy(), length_W, 95, over)
    found = scores.view(2, 3, 5, 2, 100).double() * torch.from_numpy(over)[..., None]
    torch.testing.assert_close(found[0], exact[0].softmax(-1), rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(found[1, :, :2], exact[1, :, :2].softmax(-1), rtol=1e-5, atol=1e-12)
    assert not scores.view(2, 3, 5, 2, 100)[1, :, 2:].any()


def _numpy(t: torch.Tensor) -> np.ndarray:
    return t.numpy() if t.dtype == torch.float32 else t.view(torch.int16).numpy().view(np.uint16)


@given(st.lists(st.integers(2, 300), min_size=1, max_size=60))
def test_groups_cover_all_windows_with_little_waste(lengths):
    found = list(fused.grouped(np.array(sorted(lengths))))
    assert [n for part in found for n in range(part.start, part.stop)] == list(range(len(lengths)))
    for part in found:
        some = sorted(lengths)[part]
        assert max(some) * len(some) <= fused.WASTE * sum(some) + 2 * fused.PLACES * len(some)


@settings(max_examples=30)
@given(st.lists(st.integers(2, 30), min_size=1, max_size=30), st.integers(8, 64))
def test_packed_batches_hold_real_tokens_up_to_the_budget(lengths, budget):
    cut = windows(0, [[7] * n for n in lengths], 64)
    found = list(batches(cut, budget, pad=False))
    assert sorted(i for batch in found for i in batch) == list(range(len(cut)))
    totals = [sum(len(cut[i].tokens) for i in batch) for batch in found]
    assert all(total <= budget or len(batch) == 1 for total, batch in zip(totals, found, strict=True))
    for total, after in zip(totals, found[1:], strict=False):
        assert total + len(cut[after[0]].tokens) > budget
    whole = packed([cut[i] for i in found[0]])
    assert whole.start_W.tolist() == [0, *np.cumsum(whole.length_W)]
    assert len(whole.ids_N) == totals[0]


def test_threads_give_results_in_order_and_raise_what_was_raised():
    threads = Threads()
    jobs = iter(range(100))
    results = threads.each(lambda n: n * n, jobs)
    assert next(results) == 0
    assert next(jobs) == 2 * threads.count + 1  # no more were taken
    rest = [n * n for n in range(1, 100) if n != 2 * threads.count + 1]
    assert list(results) == rest
    with pytest.raises(ZeroDivisionError):
        list(threads.each(lambda n: 1 // (3 - n), range(10)))
    threads.close()


def test_prepared_items_come_in_order_and_errors_come_through():
    def items():
        yield from range(5)
        raise UserError("the sixth")

    coming = prepared(items())
    assert [next(coming) for _ in range(5)] == list(range(5))
    with pytest.raises(UserError, match="the sixth"):
        next(coming)
