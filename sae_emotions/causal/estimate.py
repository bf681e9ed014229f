"""What the causal test costs: before anything is known but the model's shape, and what was counted in the end.

The estimate is calibrated on the default run's dictionary of 1,036 labelled features.
"""

from typing import Any

from sae_emotions.causal.controls import controls_each
from sae_emotions.config import AblateConfig

POSITIONS = 95  # positions a removal computes in each block above the hook: a text from where the feature first fires
SLOTS = 2.5  # positions a removal unembeds
SHARED = 0.22  # runs of controls a pair of feature and control and text where all are run, since features share them
LET = 0.4  # controls that the screen lets through, in times of the same share of them as of the features
NEUTRAL = 13  # positions a latent and neutral text: it is silent in two of three, and 40 follow where it fires
DENSE = 0.65  # projections a feature and text, since features of one concept share them
GROUPS = 0.2  # concepts with several labelled features, a labelled feature
MEMBERS = 11  # removals a group and text of its members alone
TEXTS = 90  # texts that are screened
PASSES = 16  # passes up and back for one of them
STORY = 125  # tokens of a text with the prompt


def estimate(
    settings: AblateConfig, labelled: int, blocks: tuple[int, int], block_flops: float, unembedding_flops: float
) -> float:
    """Floating-point operations of testing `labelled` labelled features, of which the screen lets some through to a run.

    `blocks` are those up to the hook and above it; `block_flops` and `unembedding_flops` are those of one position (twice
    the number of weights).
    """
    from sae_emotions.causal.collateral import CONTROLS
    from sae_emotions.causal.joint import CONTROLS as CONTROL_GROUPS
    from sae_emotions.causal.joint import MOST
    from sae_emotions.causal.joint import TEXTS as TEXTS_TOGETHER

    below, above = blocks
    features = min(labelled, settings.features or labelled)
    held_back = controls_each(settings.controls, labelled) / 2
    removals = settings.max_texts * features * (1 + DENSE + held_back * (SHARED if features == labelled else LET))
    removals += min(MOST, GROUPS * labelled) * TEXTS_TOGETHER * (1 + CONTROL_GROUPS + MEMBERS)
    neutral = settings.neutral_texts * (features + CONTROLS) * NEUTRAL if features else 0
    ablation = removals * (POSITIONS * above * block_flops + SLOTS * unembedding_flops)
    screened = min(TEXTS, settings.max_texts * labelled) * STORY * (below + PASSES * above) * block_flops
    return screened + ablation + neutral * (above * block_flops + unembedding_flops)


def counted(judged: float, whole: float, blocks: int, spent: dict[str, float]) -> dict[str, Any]:
    """Block-token products computed, and how many times fewer they are than those of whole forward passes.

    `spent` has positions times blocks of every phase. `judged` are the positions of one whole pass for each feature, each
    intervention on it (itself, each control, its dense vector, its random direction, its group's) and each text in which that
    acts, neutral ones included, whether the screen lets it through to a run or not; `whole` those of one whole pass for each
    removal that was run, which may serve several features.
    """
    total = sum(spent.values())
    return {
        "block_tokens": total,
        "block_tokens_by_phase": spent,
        "block_tokens_of_full_forwards": judged * blocks,
        "times_fewer_than_full_forwards": judged * blocks / total if total else None,
        "block_tokens_of_full_forwards_a_removal": whole * blocks,
        "times_fewer_than_full_forwards_a_removal": whole * blocks / total if total else None,
    }
