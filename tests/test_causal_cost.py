"""The counter of blocks times tokens: against one whole forward pass for each feature, intervention and text."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sae_emotions.causal.controls import Matched
from sae_emotions.causal.effects import Design, amount, effects, measure
from sae_emotions.causal.estimate import counted
from sae_emotions.causal.joint import Group
from sae_emotions.causal.linear import Removable
from sae_emotions.causal.profile import NONE, profile_of
from sae_emotions.causal.readouts import WordTree
from sae_emotions.causal.runners import Whole
from sae_emotions.causal.runs import enter
from sae_emotions.causal.screen import Screened
from sae_emotions.upper import Upper

BLOCKS, BLOCK, D, LATENTS, FEATURES, TEXTS = 30, 22, 16, 60, 20, 10
TREE = WordTree((5, 6), (7,), (-1,), (((-1, 7), (0, 4)), ((-1, 3),), ((-1, 8),), ((-1, 9),)))


@pytest.fixture(scope="module")
def upper():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=D, intermediate_size=24, num_hidden_layers=BLOCKS, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    return Upper(LlamaForCausalLM(config).eval(), BLOCK)


def designed(upper):
    """The default run's shape: seven blocks above the hook, latents active at a few tokens, controls that are shared."""
    rng = np.random.default_rng(0)
    texts = [enter(upper, TREE, rng.integers(10, 60, 60).tolist(), (0,)) for _ in range(TEXTS)]
    acts = []
    for text in texts:
        active_SL = rng.random((text.packed.stem, LATENTS)) < 0.05
        active_SL[~text.keep_Q[: text.packed.stem].numpy()] = False
        acts.append(torch.from_numpy(active_SL * rng.random(active_SL.shape)).float())
    uses = [np.arange(TEXTS)[rng.permutation(TEXTS)[:6]] for _ in range(FEATURES)]
    uses = [np.array([t for t in used if (acts[t][:, f] > 0).any()]) for f, used in enumerate(uses)]
    matches = [Matched(FEATURES + rng.permutation(LATENTS - FEATURES)[:14], np.ones(14, bool)) for _ in uses]
    group = Group(1, np.array([1, 5, 9]), np.arange(4), np.arange(20, 32).reshape(4, 3))
    directions_LD, unit_CD = torch.randn(LATENTS, D), torch.nn.functional.normalize(torch.randn(4, D), dim=1)
    profiles = {own: profile_of(TREE, [None] * 4, unit_CD, own) for own in range(4)}
    own_F, random, usual_D = np.arange(FEATURES) % 4, {0: unit_CD[0]}, torch.zeros(D)
    # Every other feature is let through, with every held-back control of each.
    held = [np.arange(14) >= 7] * len(uses)
    through = np.arange(FEATURES) % 2 == 0
    screened = Screened(NONE, NONE, [], np.ones(FEATURES), 0.0, through, held, frozenset({0}))
    return Design(
        texts,
        acts,
        np.arange(FEATURES),
        uses,
        matches,
        held,
        own_F,
        profiles,
        Removable(directions_LD, unit_CD, usual_D, random),
        screened,
        [group],
    )


def test_at_least_ten_times_fewer_than_whole_forward_passes(upper):
    before = upper.block_tokens
    design = designed(upper)
    entering = upper.block_tokens - before
    assert entering == TEXTS * (60 + 3) * (BLOCK + 1)
    runner, runs = Whole(upper), amount(design, TREE)
    measured = measure(runner, TREE, design, lambda n: None)
    found = counted(runs.judged, runs.whole, BLOCKS, {"entering": entering, "removals": runner.block_tokens})
    assert found["block_tokens"] == upper.block_tokens - before
    assert found["times_fewer_than_full_forwards"] >= 10
    assert found["times_fewer_than_full_forwards"] > found["times_fewer_than_full_forwards_a_removal"] > 3
    keys = {kind for kind, _ in measured.changes}
    assert keys == {"feature", "control", "dense", "random", "joint", "joint control"}


def test_what_whole_passes_would_compute_is_counted_by_hand(upper):
    design = designed(upper)
    one = design._replace(
        features_F=design.features_F[:1],
        uses=design.uses[:1],
        matches=design.matches[:1],
        held=design.held[:1],
        groups=[],
    )
    runs = amount(one, TREE)
    stem = 60 + len(TREE.prompt)

    def acting(controls_K: np.ndarray) -> int:
        """Feature, dense vector and random direction act in all its texts; own word 0 needs the one node."""
        fire = sum(bool((design.acts[t][:, c] > 0).any()) for t in design.uses[0] for c in controls_K)
        return 3 * len(design.uses[0]) + fire

    controls_K = design.matches[0].controls_K
    assert runs.removals == acting(controls_K[7:])
    assert runs.whole == runs.removals * (stem + 1) > runs.positions
    assert runs.judged == acting(controls_K) * (stem + 1)


def test_what_the_screen_keeps_out_is_not_run_and_not_known(upper):
    design = designed(upper)
    measured = measure(Whole(upper), TREE, design, lambda n: None)
    found = effects(measured, design._replace(groups=[]))
    run = {number for kind, number in measured.changes if kind == "feature"}
    assert run == {*range(0, FEATURES, 2), *design.groups[0].members_M}
    assert np.isnan(found.feature.specific_N[1::2]).all() and np.isfinite(found.feature.specific_N[::2]).all()
    assert (found.rank_F[1::2] == 0).all() and (found.rank_F[::2] > 0).all()
    assert all(np.isnan(one.profile_N[:7]).all() and np.isfinite(one.profile_N[7:]).all() for one in found.controls)


def test_a_joint_removal_takes_all_members_at_once(upper):
    """Its effect is that of the members' summed contributions, and single effects are there to be summed."""
    design = designed(upper)
    found = effects(measure(Whole(upper), TREE, design, lambda n: None), design).joint
    assert len(found.joint.word_N) == 1
    assert len(found.controls[0].word_N) == 4
    tiny = design._replace(acts=[1e-3 * acts for acts in design.acts])
    small = effects(measure(Whole(upper), TREE, tiny, lambda n: None), tiny).joint
    assert small.joint.profile_N[0] == pytest.approx(small.sum_G[0], rel=0.02, abs=1e-6)
