"""A tiny random Llama with a word-level tokenizer, saved as a model folder, and a run config that reads it."""

from pathlib import Path
from typing import Any

WORDS = [f"w{i}" for i in range(120)]


def tiny_model(folder: Path, blocks: int = 4, width: int = 32) -> Path:
    """Save the model and its tokenizer in `folder`."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *WORDS]
    backend = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(names),
            hidden_size=width,
            intermediate_size=48,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=False,
        )
    ).save_pretrained(folder)
    return folder


def tiny_text(path: Path, documents: int = 60, seed: int = 0) -> Path:
    """Write a .jsonl of random documents of 2 to 40 words."""
    import json

    import numpy as np

    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(WORDS, int(rng.integers(2, 41)))) for _ in range(documents)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def tiny_concepts(folder: Path) -> Path:
    """Write a concept set of four concepts, two registers, texts of 20 random words."""
    import json

    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    concepts = ["w0", "w1", "w2", "w3"]
    rows = []
    for register in ("first", "second"):
        for topic in range(6):
            for concept in concepts:
                text = " ".join(rng.choice(WORDS, 20))
                split = "selection" if topic < 4 else "held_out"
                rows.append(
                    {
                        "id": f"{register}-{topic}-{concept}",
                        "concept": concept,
                        "topic": str(topic),
                        "register": register,
                        "cell": register,
                        "split": split,
                        "text": text,
                    }
                )
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "concepts.csv").write_text("name\n" + "".join(f"{name}\n" for name in concepts))
    (folder / "set.json").write_text(
        json.dumps(
            {"name": "tiny", "registers": ["first", "second"], "cells": ["first", "second"], "readout": "\nw5 w6"}
        )
    )
    return folder


def tiny_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """A `RunConfig` as plain data; everything it reads is made in `folder` first."""
    tiny_model(folder / "model")
    tiny_text(folder / "text.jsonl")
    tiny_concepts(folder / "concepts")
    return {
        "name": "tiny",
        "model": {"source": str(folder / "model"), "dtype": "float32"},
        "text": {"tokens": 900, "sources": [{"source": str(folder / "text.jsonl")}]},
        "concepts": str(folder / "concepts"),
        "harvest": {
            "blocks": [1, 2],
            "context": 16,
            "batch_tokens": 64,
            "shard_tokens": 200,
            "centre_tokens": 100,
            "threads": 1,
        },
        "dictionaries": [{"name": "d", "block": 2, "d_sae": 64, "k": 4, "batch": 64, "epochs": 3, "holdout": 0.1}],
    } | changes
