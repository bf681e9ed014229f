"""Effects of all removals on the common texts: which runs are needed, and what they say of each feature.

Shapes: F features, T texts, L latents, C concepts, W words, S positions of a text and its prompt, P changed positions, K
controls, G groups of features that are removed together, D residual width.

One run of a control on a text gives the change of every word it was asked for, so it serves every feature that uses
that text and is matched with that control.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sae_emotions.causal.controls import Matched
from sae_emotions.causal.joint import Group
from sae_emotions.causal.linear import Removable
from sae_emotions.causal.profile import Changes, Profile, Readings, joined, read
from sae_emotions.causal.readouts import WordTree
from sae_emotions.causal.runners import Runner
from sae_emotions.causal.runs import Removal, Text
from sae_emotions.causal.screen import Screened

ZEROS = 4  # texts on which a removal of nothing is run
WHOLE = 2  # texts a feature on which words of several tokens are followed through all of their tokens
Key = tuple[str, int]
"""kind, and number: a latent's place; of "random" the feature, of "dense" the concept, of "joint" the group, of "joint
control" a running number"""


class Design(NamedTuple):
    """Everything that decides which removals are run."""

    texts: Sequence[Text]
    acts: Sequence[torch.Tensor]
    """per text: acts_SL, on the CPU"""
    features_F: np.ndarray
    """places of the features among the L latents"""
    uses: Sequence[np.ndarray]
    """per feature: its texts"""
    matches: Sequence[Matched]
    held: Sequence[np.ndarray]
    """per feature: which of its controls are held back, bool; the others are its reference"""
    own_F: np.ndarray
    """number of each feature's concept"""
    profiles: Mapping[int, Profile]
    """how each concept is read"""
    removable: Removable
    screened: Screened
    """which removals are run"""
    groups: Sequence[Group]


def _control_groups(design: Design) -> Iterator[tuple[int, int, np.ndarray]]:
    """Every control group: its running number, its group's, and its members' places."""
    rows = ((g, places_M) for g, group in enumerate(design.groups) for places_M in group.controls_KM)
    for number, (g, places_M) in enumerate(rows):
        yield number, g, places_M


def _wanted(design: Design, tree: WordTree, t: int) -> dict[Key, set[int]]:
    """What is to be removed from text t, and the nodes that are to be followed for it."""
    wanted: dict[Key, set[int]] = {}

    def want(kind: str, number: int, nodes: Iterable[int]) -> None:
        wanted.setdefault((kind, number), set()).update(nodes)

    needed = {own: tree.nodes_of(map(int, profile.words)) for own, profile in design.profiles.items()}
    for f, place in enumerate(design.features_F):
        if t not in design.uses[f]:
            continue
        own = int(design.own_F[f])
        if design.screened.feature_F[f]:
            want("feature", int(place), range(len(tree.tokens)) if t in design.uses[f][:WHOLE] else needed[own])
            want("dense", own, needed[own])
        if f in design.screened.random:
            want("random", f, needed[own])
        for control in design.matches[f].controls_K[design.screened.held[f]]:
            want("control", int(control), needed[own])
    for g, group in enumerate(design.groups):
        if t in group.texts:
            want("joint", g, needed[group.own])
            want("dense", group.own, needed[group.own])
            for place in group.members_M:
                want("feature", int(place), needed[group.own])
    for number, g, _ in _control_groups(design):
        if t in design.groups[g].texts:
            want("joint control", number, needed[design.groups[g].own])
    return wanted


def removal_of(
    text: Text, acts_SL: torch.Tensor, places: Sequence[int] | np.ndarray, directions_LD: torch.Tensor
) -> Removal:
    """Take the contributions of these latents (places among the columns of `acts_SL`) out of a text, all at once."""
    device = text.x_QD.device
    acts_SM = acts_SL[:, torch.as_tensor(places)]
    positions_P = torch.nonzero((acts_SM > 0).any(1))[:, 0]
    if len(places) == 1:
        amount_P, direction_D = acts_SM[positions_P, 0], directions_LD[int(places[0])]
        return Removal(positions_P.to(device), amount_P.to(device), direction_D.to(device))
    direction_PD = acts_SM[positions_P] @ directions_LD[torch.as_tensor(places)]
    return Removal(positions_P.to(device), torch.ones(len(positions_P), device=device), direction_PD.to(device))


def projection_of(text: Text, vector_D: torch.Tensor, usual_D: torch.Tensor) -> Removal:
    """Set a text's reading along a unit vector, at every position that may be changed, to that of `usual_D`."""
    vector_D = vector_D.to(text.x_QD.device)
    positions_P = torch.nonzero(text.keep_Q)[:, 0]
    return Removal(positions_P, (text.x_QD[positions_P].float() - usual_D) @ vector_D, vector_D)


def _removals(design: Design, tree: WordTree, t: int) -> Iterator[tuple[Key, Removal]]:
    """All removals to run on text t. What is silent there is left out: it changes nothing."""
    text, acts_SL = design.texts[t], design.acts[t]
    groups = {number: places_M for number, _, places_M in _control_groups(design)}
    for (kind, number), nodes in _wanted(design, tree, t).items():
        if kind == "dense":
            removal = projection_of(text, design.removable.dense_CD[number], design.removable.usual_D)
        elif kind == "random":
            own = removal_of(text, acts_SL, [int(design.features_F[number])], design.removable.directions_LD)
            unit_D = design.removable.random[number].to(text.x_QD.device)
            removal = own._replace(amount_P=own.amount_P * own.direction_D.norm(), direction_D=unit_D)
        else:
            places = {"joint": lambda: design.groups[number].members_M, "joint control": lambda: groups[number]}  # noqa: B023
            removal = removal_of(text, acts_SL, places.get(kind, lambda: [number])(), design.removable.directions_LD)  # noqa: B023
        if len(removal.positions_P):
            yield (kind, number), removal._replace(nodes=tuple(sorted(nodes)))


class Amount(NamedTuple):
    """How much `measure` will run."""

    removals: int
    positions: float
    """of texts, prompts and nodes, all removals together, each from its first change on"""
    whole: float
    """the same, each from the text's first position on"""
    judged: float
    """positions of whole passes for all that is judged, run or not: one for each feature, control and other intervention on
    it, and text in which that acts; none serves several features"""


def amount(design: Design, tree: WordTree) -> Amount:
    """Count what `measure` will run."""
    removals, positions, whole = 0, 0.0, 0.0
    for t, text in enumerate(design.texts):
        for _, removal in _removals(design, tree, t):
            removals += 1
            positions += text.packed.stem - min(removal.first, text.packed.stem - 1) + len(removal.nodes)
            whole += text.packed.stem + len(removal.nodes)
    return Amount(removals, positions, whole, _judged(design, tree))


def _judged(design: Design, tree: WordTree) -> float:
    acts_TL = np.stack([(acts_SL > 0).any(0).numpy() for acts_SL in design.acts])
    nodes = {own: len(tree.nodes_of(map(int, profile.words))) for own, profile in design.profiles.items()}
    stem_T = np.array([text.packed.stem for text in design.texts])
    total = 0.0
    for f, texts in enumerate(design.uses):
        places = [int(design.features_F[f]), *design.matches[f].controls_K]
        everywhere = 1 + (f in design.removable.random)  # the dense vector, and what acts where the feature does
        runs_T = acts_TL[np.ix_(texts, places)].sum(1) + everywhere
        total += float(runs_T @ (stem_T[texts] + nodes[int(design.own_F[f])]))
    for group in design.groups:
        cost_T = stem_T[group.texts] + nodes[group.own]
        members = [group.members_M, *group.controls_KM]
        total += float(sum(acts_TL[np.ix_(group.texts, some)].any(1) @ cost_T for some in members))
    return total


class Measured(NamedTuple):
    """Changes of the words, nats, and what it took."""

    changes: dict[Key, Changes]
    """key -> text -> changes of the words' first tokens and of the whole words, NaN where not asked for, each W long; a
    control that is silent in a text has no entry there: it changes nothing"""
    nothing: float
    """largest change of any word by a removal of zero, run among the others on the first texts"""


def measure(runner: Runner, tree: WordTree, design: Design, done: Callable[[int], None]) -> Measured:
    """Run every removal of the design, text by text."""
    changes: dict[Key, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    nothing = 0.0
    running: deque[tuple[int, list[Key]]] = deque()

    def work() -> Iterator[tuple[Text, list[Removal]]]:
        for t, text in enumerate(design.texts):
            found = list(_removals(design, tree, t))
            if found:
                running.append((t, [key for key, _ in found]))
                # A removal of nothing runs among the others on the first texts: it shows how exact all this is.
                zero = [found[0][1]._replace(amount_P=torch.zeros_like(found[0][1].amount_P))] if t < ZEROS else []
                yield text, [removal for _, removal in found] + zero

    for change in runner.words(tree, work(), done):
        t, keys = running.popleft()
        for row, key in enumerate(keys):
            changes.setdefault(key, {})[t] = (change.first_JW[row], change.all_JW[row])
        if len(change.all_JW) > len(keys):
            nothing = max(nothing, float(np.nanmax(np.abs(change.all_JW[-1]))))
    return Measured(dict(changes), nothing)


class JointEffects(NamedTuple):
    """Of every group of features that are removed together."""

    joint: Readings
    sum_G: np.ndarray
    """sum of what each member does to the profile when it is removed alone, on the same texts, nats"""
    dense: Readings
    controls: list[Readings]
    """of each group's control groups"""


class Effects(NamedTuple):
    """Of every feature, on its own concept's words; NaN where the screen lets nothing be run."""

    feature: Readings
    rank_F: np.ndarray
    """rank of its own word among all words by the mean change; 1 is lowered most, 0 where it was not run"""
    dense: Readings
    controls: list[Readings]
    random: list[Readings]
    """of each feature's one random direction, where it has one"""
    joint: JointEffects


def _rank(by_text: Changes, texts: np.ndarray, own: int) -> int:
    """Rank of the own word among all.

    A word's mean change is that of its first token on all texts, plus that of its further tokens, which change much
    less, on the texts where they were followed; the own word is followed on all.
    """
    rows = [by_text[int(t)] for t in texts]
    mean_W = np.mean([first_W for first_W, _ in rows], axis=0)
    mean_W += np.mean([all_W - first_W for first_W, all_W in rows[:WHOLE]], axis=0)
    own_change = np.mean([all_W[own] for _, all_W in rows])
    return 1 + int((np.delete(mean_W, own) < own_change).sum())


def effects(measured: Measured, design: Design) -> Effects:
    """Effects of each feature, its dense vector, its controls (in the order of its matches) and random directions."""
    changes, let = measured.changes, design.screened
    feature, dense, controls, random = [], [], [], []
    rank_F = np.zeros(len(design.uses), int)
    for f, texts in enumerate(design.uses):
        own, place = int(design.own_F[f]), int(design.features_F[f])
        profile, run = design.profiles[own], bool(let.feature_F[f])
        feature.append(read([changes["feature", place]], texts, profile) if run else UNKNOWN)
        dense.append(read([changes["dense", own]], texts, profile) if run else UNKNOWN)
        if run:
            rank_F[f] = _rank(changes["feature", place], texts, own)
        found = read(_of(changes, "control", design.matches[f].controls_K), texts, profile)
        controls.append(Readings(*(np.where(let.held[f], one_K, np.nan) for one_K in found)))
        run = f in let.random
        one = read([changes["random", f]], texts, profile) if run else UNKNOWN
        random.append(one if f in design.removable.random else joined([]))
    return Effects(joined(feature), rank_F, joined(dense), controls, random, _joint(changes, design))


UNKNOWN = Readings(*(np.array([np.nan]) for _ in Readings._fields))


def _of(changes: Mapping[Key, Changes], kind: str, numbers: Iterable[int]) -> list[Changes]:
    return [changes.get((kind, int(number)), {}) for number in numbers]


def _joint(changes: Mapping[Key, Changes], design: Design) -> JointEffects:
    numbers: list[list[int]] = [[] for _ in design.groups]
    for number, g, _ in _control_groups(design):
        numbers[g].append(number)
    joint, sums, dense, controls = [], [], [], []
    for g, group in enumerate(design.groups):
        profile = design.profiles[group.own]
        joint.append(read([changes["joint", g]], group.texts, profile))
        sums.append(read(_of(changes, "feature", group.members_M), group.texts, profile).profile_N.sum())
        dense.append(read([changes["dense", group.own]], group.texts, profile))
        controls.append(read(_of(changes, "joint control", numbers[g]), group.texts, profile))
    return JointEffects(joined(joint), np.array(sums), joined(dense), controls)
