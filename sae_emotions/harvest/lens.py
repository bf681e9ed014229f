"""What a reader needs beside the rows: unembedding, vocabulary and the concept texts' input embeddings, once a run.

V: vocabulary, D: residual width, n: tokens that occur in the concept texts.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from sae_emotions.artefact import written
from sae_emotions.errors import UserError
from sae_emotions.harvest.rows import read_documents
from sae_emotions.schema import write_table
from sae_emotions.sources.models import Model, decoder_blocks

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


def final_norm(model: torch.nn.Module) -> torch.nn.Module:
    """The norm between the last block and the unembedding: the blocks' own sibling."""
    blocks = decoder_blocks(model)
    for module in model.modules():
        if any(child is blocks for child in module.children()):
            for name in _FINAL_NORMS:
                found = getattr(module, name, None)
                if isinstance(found, torch.nn.Module):
                    return found
    raise UserError(f"No final norm was found in {type(model).__name__}; this architecture is not supported yet.")


def scaled_unembedding(model: torch.nn.Module) -> torch.Tensor:
    """W_U times the final norm's weight, (V, D) float32, so that a direction's logits are one product (logit lens)."""
    norm = final_norm(model)
    gamma_D = norm.weight.detach().float()  # type: ignore[operator]
    if type(norm).__name__.startswith("Gemma"):
        gamma_D = 1 + gamma_D  # Gemma stores the weight's distance from one
    W_U_VD: torch.Tensor = model.get_output_embeddings().weight.detach().float()  # type: ignore[operator]
    return (W_U_VD * gamma_D).cpu()


def token_texts(tokenizer: Any, size: int) -> list[str]:
    """How each token id looks in a text; a leading space is kept."""
    texts = tokenizer.batch_decode([[i] for i in range(size)], clean_up_tokenization_spaces=False)
    marks = tokenizer.convert_ids_to_tokens(list(range(size)))
    return [
        " " + text if mark and mark.startswith("\u2581") and not text.startswith(" ") else text
        for text, mark in zip(texts, marks, strict=True)
    ]


def write_lens(run: Path, model: Model) -> None:
    """Write RUN/unembedding.safetensors (`W_U`, V x D, float16) and RUN/vocabulary.parquet, unless they are there."""
    path = run / "unembedding.safetensors"
    if path.is_file() and (run / "vocabulary.parquet").is_file():
        return
    W_U_VD = scaled_unembedding(model.model)
    size = min(len(W_U_VD), len(model.tokenizer))
    write_table(
        run / "vocabulary.parquet",
        "vocabulary",
        {"token": list(range(size)), "text": token_texts(model.tokenizer, size)},
    )
    with written(path) as beside:
        save_file({"W_U": W_U_VD[:size].half().contiguous()}, beside)


def write_embedding(run: Path, model: Model) -> None:
    """Write RUN/embedding.safetensors, unless it is there: `token` (n, int32) and `W_E` (n x D, float32).

    The tokens are those of the concept texts: what a bag of input embeddings of these texts is made of.
    """
    path = run / "embedding.safetensors"
    if path.is_file():
        return
    ids = read_documents(run / "activations" / "concepts")["token_ids"].combine_chunks().values
    token_n = torch.from_numpy(np.unique(ids.to_numpy()).astype(np.int32))
    W_E_VD = model.model.get_input_embeddings().weight.detach()
    with written(path) as beside:
        save_file({"token": token_n, "W_E": W_E_VD[token_n.to(W_E_VD.device)].float().cpu().contiguous()}, beside)
