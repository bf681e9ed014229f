"""The story of a run in plain sentences: what was read, what was found, and where something simpler does better."""

from collections.abc import Sequence

from sae_emotions.lookup.tables import Row
from sae_emotions.report.findings import Causal, Findings, Found, Labels
from sae_emotions.report.summary import causal_numbers, label_numbers, mean

NAMES = {"dense": "the dense vector (difference of means)", "tfidf": "a bag of words (TF-IDF)"}

ARCHITECTURES = {
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "jumprelu": "JumpReLU",
    "matryoshka_batchtopk": "Matryoshka BatchTopK",
}


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 feature`, `2 features`, `no features`."""
    return (
        f"{number or 'no'} {one}"
        if number == 1
        else f"{number or 'no'} {many or one + 's'}".replace(f"{number} ", f"{number:,} ", 1)
    )


def opening(text: str) -> str:
    """The text with a capital: the first words of a sentence."""
    return text[:1].upper() + text[1:]


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, which is a real minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def model_name(found: Findings) -> str:
    """The last part of the model's source: what people call it."""
    return found.config.model.source.rstrip("/").rpartition("/")[2]


def overview(found: Findings) -> list[str]:
    """What was read, with which model."""
    model = found.info.get("model") or {}
    facts = [f"{model['parameters'] / 1e6:,.0f} million parameters"] if model.get("parameters") else []
    facts += [f"{model['blocks']} blocks"] if model.get("blocks") else []
    about = f" ({', '.join(facts)})" if facts else ""
    tokens = f"{found.tokens:,} tokens of general text" if found.tokens else "a general text"
    blocks = [str(block) for block in sorted(found.config.harvest.blocks)]
    where = f"after block {blocks[0]}" if len(blocks) == 1 else f"after blocks {listed(blocks)}"
    lines = [
        f"{model_name(found)}{about} read {tokens} and the texts of the concept set; its residual stream was "
        f"kept {where}, token by token."
    ]
    if model.get("stored") and "bit" in str(model["stored"]):
        lines.append(
            f"The model's weights were stored as {model['stored']}; they were fully dequantised before reading."
        )
    if model.get("weights", "trained") != "trained":
        lines.append(f"The model knows nothing: its weights are {model['weights']}. What is found here is a null.")
    if found.config.note:
        lines.append(f"Note: {found.config.note}")
    return lines


def dictionary(one: Found) -> list[str]:
    """How good the dictionary is."""
    quality = one.quality
    if not quality:
        return [f"The dictionary {one.name} is not there yet."]
    kind = str(quality.get("architecture") or "sparse")
    made = "was loaded, not trained here" if quality.get("pretrained") else "was trained here"
    lines = [
        f"A {ARCHITECTURES.get(kind, kind)} dictionary of {quality['d_sae']:,} features for block {one.block} {made}."
    ]
    lines += _read(one)
    facts = []
    if quality.get("l0") is not None:
        facts.append(f"spells a token with {quality['l0']:.1f} active features on average")
    if quality.get("fvu") is not None:
        facts.append(f"leaves {quality['fvu']:.1%} of the variance unexplained")
    if quality.get("ce_recovered") is not None:
        facts.append(
            f"keeps {quality['ce_recovered']:.1%} of what the block tells the rest of the model (cross-entropy "
            "recovered when it is spliced in)"
        )
    if facts:
        lines.append(f"On held-out text it {listed(facts)}.")
    if quality.get("dead") is not None:
        share = f"{quality['dead']:.1%} of its" if quality["dead"] else "none of its"
        lines.append(f"At the end of training {share} features were dead.")
    return lines


def _read(one: Found) -> list[str]:
    """How near its rows are to the model's own in float32."""
    read = one.read
    if not read:
        return []
    how = f"Its rows were read in {read['dtype']}, by the {read['path']} pass"
    if "relative_error" not in read:
        return [f"{how}; there was no room to compare them with the model in float32."]
    own = read["eager"]["relative_error"]
    return [
        f"{how}; on a few windows of the text they stray from the model in float32 by {read['relative_error']:.2%} (the "
        f"model's own forward pass in {read['dtype']} by {own:.2%})."
    ]


def labels(found: Labels) -> list[str]:
    """What was labelled, against the null."""
    numbers = label_numbers(found)
    lines = [
        f"{found.screened:,} of {found.features:,} features pass the screen for one concept on the selection texts in both "
        "registers; families of concepts and the ends of norms are screened beside."
    ]
    if numbers["features"]:
        lines.append(
            f"{numbers['features']:,} features hold on held-out topics: they are the labelled ones, "
            f"{count(numbers['concepts'], 'concept')} between those that pass for one."
        )
    else:
        lines.append("None holds on held-out topics, so no feature is labelled.")
    lines += _grain(numbers)
    if found.one_register:
        parts = [f"{number:,} {status}" for status, number in sorted(found.one_register.items())]
        lines.append(f"Evidence in one register alone is no label: {listed(parts)}.")
    lines.append(
        f"For each of the {len(found.concepts)} concepts one feature was chosen on the selection texts; "
        f"{count(numbers['confirmed_concepts'], 'concept is', 'concepts are')} confirmed on held-out topics, "
        f"{count(len(found.concepts) - numbers['confirmed_concepts'], 'is', 'are')} not."
    )
    permuted = found.null.get("labelled_features")
    if permuted:
        gives = "labels no feature in any of them"
        if any(permuted):
            gives = f"labels {mean(permuted):.2f} features on average there, {max(permuted)} at most"
        lines.append(
            f"The same rule was applied to {len(permuted)} permutations of the labels within topics. It {gives}, "
            f"against {numbers['features']:,} with the real labels; {sum(n > 0 for n in permuted)} of the permutations "
            "gave any label."
        )
    return lines


GRAINS = {"concept": "one concept", "family": "a family of concepts", "norm": "one end of a norm alone"}
CONTROLS = {
    "named": "the words that a text names",
    "person": "first-person narration",
    "length": "the text's length",
    "bag": "a bag of words",
}


def _grain(numbers: Row) -> list[str]:
    """What the labels say, and what explains them as well."""
    grains, lines = numbers["grain"] or {}, []
    if grains:
        parts = [f"{n:,} with {GRAINS[kind]}" for kind, n in sorted(grains.items()) if kind in GRAINS]
        lines.append(f"Each is labelled with the smallest thing that explains it: {listed(parts)}.")
    untold = numbers.get("concepts_not_told_from_siblings")
    if untold:
        lines.append(
            f"For {untold:,} of those with one concept neither its family nor a norm holds as a whole, but the concept is not "
            "told from its siblings either."
        )
    explained = {name: n for name, n in (numbers["explained_by"] or {}).items() if n and name in CONTROLS}
    if explained:
        parts = [f"{CONTROLS[name]} ({n:,})" for name, n in explained.items()]
        lines.append(f"Of some of the labels not enough evidence is left once this is taken out: {listed(parts)}.")
    return lines


def comparison(found: Labels) -> list[str]:
    """Single features beside the baselines, cell by cell; a baseline that wins is said to win."""
    numbers = label_numbers(found)
    shown = [f"{numbers[f'auroc_{c}']:.3f} in {c}" for c in found.cells if numbers[f"auroc_{c}"] is not None]
    lines = []
    if shown:
        lines.append(
            "The feature chosen for a concept tells its texts from the others of the same topic with a mean held-out "
            f"AUROC of {listed(shown)} (0.5 is chance; all concepts count, confirmed or not)."
        )
    for baseline, name in NAMES.items():
        pairs = [(c, numbers[f"{baseline}_auroc_{c}"], numbers[f"auroc_{c}"]) for c in found.cells]
        known = [(c, theirs, ours) for c, theirs, ours in pairs if theirs is not None and ours is not None]
        if not known:
            continue
        values = listed([f"{theirs:.3f} in {c}" for c, theirs, _ in known])
        worse = [c for c, theirs, ours in known if theirs > ours]
        better = [c for c, theirs, ours in known if theirs <= ours]
        if not worse:
            verdict = "the single feature is at least as good everywhere"
        elif not better:
            verdict = "it does better than the single feature everywhere"
        else:
            verdict = f"it does better than the single feature in {listed(worse)}, and no better in {listed(better)}"
        lines.append(f"On the same texts {name} reaches {values}: {verdict}.")
    return lines


def causal(found: Causal) -> list[str]:
    """What removing the features does, against controls."""
    numbers = causal_numbers(found)
    total = numbers["tested"] + numbers["not_testable"]
    if not total:
        return ["There is no labelled feature, so nothing was tested."]
    lines = [
        f"Each of the {count(total, 'labelled feature')} was to be removed from held-out texts in which it fires, and "
        f"the words of its concept and of concepts like it read out; {numbers['tested']:,} could be tested, "
        f"{numbers['not_testable']:,} could "
        "not."
    ]
    fewer = found.shown != "z"
    if fewer:
        lines.append(
            f"Their first-order effects say which are worth an exact removal: {numbers['removed']:,} of them "
            f"(`ablate.features` in the config), and of the controls {numbers['controls_removed']:,}, by the same limit. What is "
            "not removed exactly counts as tested and not shown."
        )
    if not numbers["tested"]:
        return lines
    judged, passed = numbers["controls_tested"], numbers["controls_confirmed"]
    same = ""
    if passed is not None and judged:
        same = f" By the same rule {passed:,} of {judged:,} matched controls would be ({passed / judged:.1%})."
    lines.append(
        f"{opening(count(numbers['confirmed'], 'feature is', 'features are'))} causal: these words fall further than "
        f"removing matched unlabelled features lowers them.{same}"
    )
    if numbers["below_most_controls"] is not None:
        how = ", to first order" if fewer else ""
        lines.append(
            f"As a group, {numbers['below_most_controls']:.0%} of the tested features lie below the 5th percentile of "
            f"the held-back controls, where chance would put 5%{how}."
        )
    strongest = [one for one in found.verdicts if one["verdict"] == "causal"][:4]
    if strongest:
        parts = [f"{one['concept']} ({signed(one['effect'], 2)} nats, z {signed(one['z'], 1)})" for one in strongest]
        lines.append(f"The strongest: {listed(parts)}.")
    rest = numbers["tested"] - numbers["confirmed"]
    if rest:
        lines.append(
            f"For {count(rest, 'tested feature')} no effect was shown: they read the concept, but whether the model's "
            "words depend on them is open."
        )
    flagged = sum(bool(one["kl_flag"]) for one in found.verdicts)
    if flagged:
        lines.append(
            f"{count(flagged, 'feature disturbs', 'features disturb')} neutral text more than 95% of the controls do."
        )
    return lines + _together(found) + _screen(found)


def _together(found: Causal) -> list[str]:
    """All features of a concept at once."""
    joint = found.summary.get("joint") or {}
    if not joint.get("tested"):
        return []
    return [
        f"For {count(joint['tested'], 'concept')} all labelled features ({joint['features'] / joint['concepts']:.1f} on "
        f"average) were removed at once: {count(joint['confirmed'], 'joint removal is', 'joint removals are')} causal, and "
        f"{joint['control_groups_confirmed']:,} of {joint['control_groups_tested']:,} matched control groups would be. The "
        f"median joint effect is {signed(joint['median_effect'])} nats, the median sum of single effects "
        f"{signed(joint['median_sum_of_single'])} (they differ with p = {joint['p_joint_differs_from_sum']:.2g}, Wilcoxon)."
    ]


def _screen(found: Causal) -> list[str]:
    """How well first-order effects foretell exact ones, and what the test cost."""
    lines = []
    screen, fewer = found.summary.get("screen") or {}, found.summary.get("times_fewer_than_full_forwards")
    same = screen.get("rank_agreement") or {}
    if same.get("rho") is not None:
        lines.append(
            "First-order effects (in units of the scatter) rank features as exact ones do with a correlation of "
            f"{same['rho']:.2f} (95% interval {same['low']:.2f} to {same['high']:.2f}, {same['pairs']:,} features)."
        )
    if fewer:
        lines.append(
            f"All this took {fewer:.1f} times fewer block-token products than one whole forward pass for each feature, "
            "control or other intervention that was judged, exactly or to first order, and text in which it acts."
        )
    return lines


def in_short(found: Findings) -> list[str]:
    """The three sentences that a hurried reader takes along: of the first labelled dictionary."""
    first = next((one for one in found.dictionaries if one.labels), None)
    if first is None or first.labels is None:
        return ["No dictionary of this run is labelled yet."]
    numbers = label_numbers(first.labels)
    lines = [
        f"{opening(count(numbers['features'], 'feature'))} of {first.name} read a concept, a family of concepts or one end of a "
        f"norm on topics never used to choose them; permuted labels give {numbers['null_features'] or 0:.2f}."
    ]
    ours = mean(numbers[f"auroc_{c}"] for c in first.labels.cells)
    dense = mean(numbers[f"dense_auroc_{c}"] for c in first.labels.cells)
    if ours is not None and dense is not None:
        word = "below" if ours < dense else "not below"
        lines.append(
            f"A single feature reads its concept with a mean held-out AUROC of {ours:.3f}, {word} the {dense:.3f} of "
            "a dense vector made from the same texts."
        )
    if first.causal:
        done = causal_numbers(first.causal)
        lines.append(
            f"{done['confirmed']:,} of {count(done['tested'], 'tested feature')} also change what the model says when "
            "removed, beyond matched controls."
        )
    return lines
