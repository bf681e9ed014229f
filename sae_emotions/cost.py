"""What a run will cost here, before it starts: tokens, disk, memory, minutes, from a measurement of this machine."""

from pathlib import Path
from typing import NamedTuple

from sae_emotions.artefact import read_json
from sae_emotions.causal.estimate import estimate as ablation
from sae_emotions.concepts.concept_set import ConceptSet
from sae_emotions.config import RunConfig
from sae_emotions.dictionary.group import SPARSE, groups, training_bytes
from sae_emotions.run_folder import is_done

TOKENS_PER_WORD = 1.35
"""English prose under common tokenizers, for texts that are not tokenised yet."""
DENSE_EFFICIENCY = 0.8
"""Rate of one of SAELens' dense training steps against 12 x d_in x d_sae operations a row in float32."""
LABELLED = 1000
"""Labelled features that an estimate expects; the default run had 1,036 of 2,048 latents."""
LABEL, LABELLING = 50, 3e-5
"""Seconds of the label stage beside encoding, and of one permutation and latent, on two cores with AVX2."""


class Efficiency(NamedTuple):
    """What the default run reached on two cores, as shares of measured product rates."""

    forward: float
    """a whole forward pass, of products in the model's type"""
    sparse: float
    """a sparse training step, of 12 x d_in x d_sae operations a row in float32: it skips most of them"""
    encode: float
    """the same for encoding, of 2 x d_in x d_sae"""
    ablation: float
    """removals, whose batches are small, of products in the model's type"""


IN_FLOAT32 = Efficiency(forward=0.75, sparse=2.5, encode=1.0, ablation=0.65)  # AVX2
IN_BFLOAT16 = Efficiency(forward=0.77, sparse=5.2, encode=4.0, ablation=0.5)  # AVX-512 with BF16 and VNNI


class Speed(NamedTuple):
    """Products that this machine was measured at, in GFLOP/s."""

    float32: float
    model: float
    """in the type that the model runs in"""


class Line(NamedTuple):
    """One stage of the estimate."""

    stage: str
    what: str
    minutes: float


class Cost(NamedTuple):
    """The whole estimate."""

    lines: tuple[Line, ...]
    tokens: int
    disk_bytes: int
    memory_bytes: int

    @property
    def minutes(self) -> float:
        """All stages."""
        return sum(line.minutes for line in self.lines)


def estimate(
    config: RunConfig, model: dict[str, int], concepts: ConceptSet, speed: Speed, float32: bool, done: set[str]
) -> Cost:
    """Estimate a run. `model` has blocks, d_model, parameters, vocabulary; `float32`: whether it runs in float32 here.

    `done` are the keys of stages that will not run again.
    """
    rate, exact, share = speed.model * 1e9, speed.float32 * 1e9, IN_FLOAT32 if float32 else IN_BFLOAT16
    width, blocks = model["d_model"], model["blocks"]
    a_block = max(1, model["parameters"] - model["vocabulary"] * width) / blocks
    depth = max(config.harvest.blocks) + 1
    story = round(sum(len(text.text.split()) for text in concepts.texts) * TOKENS_PER_WORD)
    wanted = config.text.wanted(float32)
    tokens = wanted + story
    bytes_a_row = width + 4 if config.harvest.store == "int8" else 2 * width
    lines = []
    if "harvest" not in done:
        seconds = tokens * 2 * a_block * depth / (rate * share.forward)
        what = f"{wanted:,} tokens of text and about {story:,} of concept texts through {depth} of {blocks} blocks"
        lines.append(Line("harvest", what, seconds / 60))
    rows = tokens * 0.98
    for dictionary in config.dictionaries:
        name = dictionary.name
        product = 2 * width * dictionary.d_sae
        if f"train:{name}" not in done and dictionary.pretrained is None:
            seen = rows * dictionary.epochs * (0.75 if dictionary.concept_rows else 0.5)
            what = f"about {seen:,.0f} rows of width {width} into {dictionary.d_sae:,} latents"
            step = share.sparse if dictionary.architecture in SPARSE else DENSE_EFFICIENCY
            lines.append(Line(f"train {name}", what, seen * 6 * product / (exact * step) / 60))
        if f"label:{name}" not in done:
            what = f"{dictionary.d_sae:,} features x {len(concepts.concepts)} concepts, {config.label.permutations} permutations"
            seconds = rows * 2 * product / (exact * share.encode) + LABEL
            seconds += LABELLING * config.label.permutations * dictionary.d_sae
            lines.append(Line(f"label {name}", what, seconds / 60))
        if f"ablate:{name}" not in done:
            above = blocks - dictionary.block - 1
            features = min(LABELLED, config.ablate.features or LABELLED)
            parts = (dictionary.block + 1, above)
            operations = ablation(config.ablate, LABELLED, parts, 2 * a_block, 2 * width * model["vocabulary"])
            judged = f"all labelled features and about {config.ablate.controls:,} held-back controls to first order"
            what = f"{judged}, about {features} features exactly through {above} blocks"
            lines.append(Line(f"ablate {name}", what, operations / (rate * share.ablation) / 60))
    if "report" not in done:
        lines.append(Line("report", "report.html, summary.json", 0.2))
    disk = len(config.harvest.blocks) * round(rows) * bytes_a_row + 12 * tokens + 2 * width * model["vocabulary"]
    disk += sum(8 * width * dictionary.d_sae for dictionary in config.dictionaries)
    cut = groups([one for one in config.dictionaries if f"train:{one.name}" not in done], width)
    together = max(cut, key=lambda group: sum(training_bytes(one, width) for one in group), default=[])
    disk += sum(24 * width * one.d_sae for one in together)  # checkpoints
    largest = max(dictionary.d_sae for dictionary in config.dictionaries)
    memory = 1_000_000_000 + 4 * model["parameters"] + sum(training_bytes(one, width) for one in together)
    memory += 4 * (2 * width + 2 * 4096) * largest + 8 * len(concepts.texts) * largest
    return Cost(tuple(lines), tokens, disk, memory)


def rendered(cost: Cost, machine: str, out: Path) -> str:
    """The estimate as lines of text for a person."""
    lines = [f"  {line.stage:<32} {line.minutes:6.1f} min   {line.what}" for line in cost.lines]
    return "\n".join(
        [
            f"What this will do in {out}, roughly, on this machine ({machine}):",
            *(lines or ["  nothing: all stages are done"]),
            f"  {'together':<32} {cost.minutes:6.1f} min   {cost.tokens:,} tokens, {cost.disk_bytes / 1e9:.1f} GB of disk, "
            f"{cost.memory_bytes / 1e9:.1f} GB of memory",
        ]
    )


def stages_done(run: Path) -> set[str]:
    """Keys of the stages of a run folder that are done; empty where there is no run."""
    if not (run / "run.json").is_file():
        return set()
    return {key for key in read_json(run / "run.json")["stages"] if is_done(run, key)}
