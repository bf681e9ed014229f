"""Dense vectors at a block above the hook: each concept's difference of means there, on selection texts.

Shapes: C concepts, D residual width, N rows.
"""

from pathlib import Path

import numpy as np
import torch

from sae_emotions.causal.material import Material
from sae_emotions.config import RunConfig
from sae_emotions.harvest.rows import open_rows, read_documents
from sae_emotions.label.baselines import difference_of_means
from sae_emotions.label.layout import layout
from sae_emotions.progress import Progress
from sae_emotions.upper import Upper

TEXTS = 6  # selection texts a concept where the block was not harvested
CHUNK = 8192  # rows read at once


def higher_dense(config: RunConfig, run: Path, material: Material, upper: Upper) -> tuple[int, torch.Tensor, str]:
    """A block above the hook and below the last, unit vectors dense_CD there, and what they were made from, in words.

    The highest such block that was harvested, with the label stage's recipe on all selection texts; where there is none, the
    block in the middle, from a few selection texts a concept that are run up to it: their means less the mean of all.
    """
    there = [block for block in config.harvest.blocks if upper.block < block < upper.last]
    if there:
        dense_CD = _from_rows(config, run, material, max(there))
        return max(there), torch.nn.functional.normalize(dense_CD, dim=1), "all selection texts, within topic"
    reached = (upper.block + upper.last + 1) // 2
    dense_CD = _from_texts(config, material, Upper(upper.model, reached))
    return reached, torch.nn.functional.normalize(dense_CD, dim=1), f"{TEXTS} selection texts a concept"


def _from_rows(config: RunConfig, run: Path, material: Material, block: int) -> torch.Tensor:
    folder = run / "activations" / "concepts"
    rows, found = open_rows(folder, block), layout(material.concepts)
    number = {key: n for n, key in enumerate(found.text_ids)}
    text_of = np.array([number.get(key, -1) for key in read_documents(folder)["key"].to_pylist()])
    text_N = text_of[rows.document_N]
    chosen = np.unique(np.concatenate([one.rows_CS[one.rows_CS >= 0] for one in found.selection]))
    index_N = np.flatnonzero(np.isin(text_N, chosen) & (rows.position_N >= config.label.skip_tokens))
    total_TD = torch.zeros(len(found.text_ids), rows.d_in)
    with Progress("dense vectors", len(index_N), "rows") as bar:
        for at in range(0, len(index_N), CHUNK):
            some = index_N[at : at + CHUNK]
            total_TD.index_add_(0, torch.from_numpy(text_N[some]), torch.from_numpy(rows.read(some)))
            bar.advance(len(some))
    count_T = np.maximum(np.bincount(text_N[index_N], minlength=len(found.text_ids)), 1)
    means_TD = total_TD.numpy() / count_T[:, None]
    return torch.from_numpy(difference_of_means(means_TD, found.selection)).float()


def _from_texts(config: RunConfig, material: Material, reader: Upper) -> torch.Tensor:
    device = next(reader.model.parameters()).device
    asked = [(concept, story) for concept, some in material.selection.items() for story in some[:TEXTS]]
    total_CD = torch.zeros(len(material.concepts.concepts), material.dictionary.d_in)
    with Progress("dense vectors", len(asked), "texts") as bar:
        for concept, story in asked:
            x_SD = reader.residual(torch.tensor([story.ids], device=device))[0].float().cpu()
            total_CD[concept] += x_SD[config.label.skip_tokens :].mean(0)
            bar.advance(1)
    count_C = torch.tensor([len(material.selection.get(n, [])[:TEXTS]) for n in range(len(total_CD))])
    mean_CD = total_CD / count_C.clamp_min(1)[:, None]
    return mean_CD - mean_CD[count_C > 0].mean(0)
