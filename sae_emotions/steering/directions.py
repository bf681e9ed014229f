"""What is added to the residual stream: features, dense vectors, random directions, matched features, all equally long.

Shapes: F latents, L latents looked at, N rows, K controls, D residual width.

A dose is counted in one of two units. `norm`: of the mean norm of the general text's rows; the features' unit directions
are added up and the sum made a unit vector. `p99`: of each feature's own 99th percentile of activation on the rows of
that text in which it fires, times its decoder direction. Whatever is compared with a feature gets the feature's length.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from sae_emotions.causal.controls import match
from sae_emotions.causal.texts import Firing
from sae_emotions.dictionary.encode import Dictionary
from sae_emotions.errors import UserError
from sae_emotions.harvest.rows import open_rows
from sae_emotions.label.means import BATCH, encoded
from sae_emotions.progress import Progress

Unit = Literal["norm", "p99"]
ROWS = 65_536
"""rows of the general text that are looked at, at most"""


class Scale(NamedTuple):
    """How strong things are in the general text."""

    norm: float
    """mean norm of a row"""
    rows: int
    """rows looked at"""
    active_F: np.ndarray
    """rows in which each latent fires"""
    amount_F: np.ndarray
    """summed activation"""
    p99_F: np.ndarray
    """99th percentile of the activation where it fires; NaN where it never does"""


class Direction(NamedTuple):
    """A unit vector, and how long one dose of it is in residual-stream units."""

    unit_D: torch.Tensor
    length: float


def scale(run: Path, dictionary: Dictionary, seed: int) -> Scale:
    """Read up to `ROWS` stored rows of the general text, drawn by `seed`. Raises `UserError` where there are none."""
    rows = open_rows(run / "activations" / "text", dictionary.block)
    if rows.d_in != dictionary.d_in:
        raise UserError(f"{rows.folder} is {rows.d_in} wide but '{dictionary.name}' reads {dictionary.d_in}.")
    picked_N = np.sort(np.random.default_rng([seed, 11]).permutation(len(rows))[:ROWS])
    norms, features, values = [], [], []
    with Progress("steer: scale", len(picked_N), "rows") as bar:
        for start in range(0, len(picked_N), BATCH):
            x_BD = rows.read(picked_N[start : start + BATCH])
            norms.append(np.linalg.norm(x_BD, axis=1))
            firing = encoded(dictionary, x_BD)
            features.append(firing.feature_P.astype(np.int32))
            values.append(firing.value_P.astype(np.float32))
            bar.advance(len(x_BD))
    feature_P, value_P = np.concatenate(features), np.concatenate(values)
    active_F = np.bincount(feature_P, minlength=dictionary.d_sae)
    p99_F = np.full(dictionary.d_sae, np.nan)
    order_P = np.argsort(feature_P, kind="stable")
    fires_F = np.flatnonzero(active_F)
    for feature, own in zip(fires_F, np.split(value_P[order_P], np.cumsum(active_F[fires_F])[:-1]), strict=True):
        p99_F[feature] = np.percentile(own, 99)
    amount_F = np.bincount(feature_P, value_P, dictionary.d_sae)
    return Scale(float(np.concatenate(norms).mean()), len(picked_N), active_F, amount_F, p99_F)


def unit(vector_D: torch.Tensor) -> torch.Tensor:
    """The vector at length 1, float32."""
    return torch.nn.functional.normalize(vector_D.float(), dim=-1)


def check_features(dictionary: Dictionary, features: Sequence[int]) -> None:
    """Raise `UserError` for a feature that the dictionary does not have."""
    for feature in features:
        if not 0 <= feature < dictionary.d_sae:
            raise UserError(
                f"There is no feature {feature} in {dictionary.name}; give a number from 0 to {dictionary.d_sae - 1}."
            )


def of_features(dictionary: Dictionary, found: Scale, features: Sequence[int], by: Unit) -> Direction:
    """One or several features added together. Raises `UserError` for one that is not there, or never fires (`p99`)."""
    check_features(dictionary, features)
    directions_FD = dictionary.W_dec_FD[list(features)].float().cpu()
    if by == "norm":
        return Direction(unit(unit(directions_FD).sum(0)), found.norm)
    p99_F = found.p99_F[list(features)]
    silent = [feature for feature, one in zip(features, p99_F, strict=True) if np.isnan(one)]
    if silent:
        raise UserError(
            f"Feature {silent[0]} never fires in the {found.rows:,} rows of general text that were looked at, so it has no "
            "99th percentile; give doses in units of the residual norm."
        )
    vector_D = (torch.from_numpy(p99_F).float()[:, None] * directions_FD).sum(0)
    return Direction(unit(vector_D), float(vector_D.norm()))


def random_units(count: int, width: int, seed: int) -> torch.Tensor:
    """Unit vectors drawn evenly from the sphere, count x D."""
    rng = np.random.default_rng([seed, 12])
    return unit(torch.from_numpy(rng.standard_normal((count, width))))


def matched(
    dictionary: Dictionary, found: Scale, features: Sequence[int], free: np.ndarray, count: int
) -> list[np.ndarray]:
    """For each feature, numbers of up to `count` latents among `free` that fire about as often and as strongly.

    The match is that of the causal test (`causal.controls.match`), on the general text as one text; nearest first, and no
    latent is given to two features.
    """
    candidates = free[found.active_F[free] > 0]
    latents_L = np.concatenate([np.asarray(features, np.int64), candidates.astype(np.int64)])
    norms_L = dictionary.W_dec_FD[torch.from_numpy(latents_L)].norm(dim=1).cpu().numpy()
    firing = Firing(found.active_F[None, latents_L], found.amount_F[None, latents_L], np.array([found.rows]))
    fires = [n for n, feature in enumerate(features) if found.active_F[feature]]
    places_C = np.arange(len(features), len(latents_L))
    some = match(firing, norms_L, np.array(fires, np.int64), [np.array([0])] * len(fires), places_C, count, share=False)
    by_place = dict(zip(fires, some, strict=True))
    nothing = np.zeros(0, np.int64)
    return [latents_L[by_place[n].controls_K] if n in by_place else nothing for n in range(len(features))]


def matched_units(dictionary: Dictionary, matches: Sequence[np.ndarray]) -> torch.Tensor:
    """Unit vectors of the features' k-th matches, added together like the features themselves. Shape K x D."""
    count = min((len(one) for one in matches), default=0)
    sums = [unit(dictionary.W_dec_FD[torch.from_numpy(one[:count])].cpu()) for one in matches]
    return unit(torch.stack(sums).sum(0)) if count else torch.zeros(0, dictionary.d_in)
