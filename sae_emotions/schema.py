"""Every Parquet table of a run folder, column by column. Writers and readers both go through here.

A name with `<cell>` stands for one column a cell of the concept set (built in: plain, literary, crossed).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sae_emotions.artefact import written
from sae_emotions.errors import UserError


class Column(NamedTuple):
    """One documented column."""

    name: str
    type: pa.DataType
    doc: str


i32, i64, f32, f64 = pa.int32(), pa.int64(), pa.float32(), pa.float64()
text, flag = pa.string(), pa.bool_()

TABLES: dict[str, tuple[Column, ...]] = {
    "documents": (  # activations/<source>/documents-NNNNN.parquet
        Column("document", i32, "number of the document within its source, from 0"),
        Column("key", text, "the source's own name of the document; concept texts: the text's id"),
        Column("source", text, "which text source of the mixture it came from"),
        Column("shard", i32, "shard that holds its rows"),
        Column("token_ids", pa.list_(i32), "all its tokens, the opening one and special ones included"),
    ),
    "training": (  # dictionaries/<name>/training.parquet
        Column("step", i64, "training step, from 1"),
        Column("rows", i64, "rows seen so far"),
        Column("loss", f32, "training loss of the step's batch"),
        Column("fvu", f32, "fraction of variance unexplained of the step's batch"),
        Column("l0", f32, "mean active latents a row of the step's batch"),
        Column("dead", f32, "share of latents that have not fired for the dead window"),
        Column("lr", f32, "learning rate"),
        Column("unsure", f32, "share of the batch's rows whose active latents the fast screen left to float32"),
    ),
    "vocabulary": (  # vocabulary.parquet
        Column("token", i32, "token id"),
        Column("text", text, "what the token looks like in a text; a leading space is kept"),
    ),
    "features": (  # labels/<name>/features.parquet, one row a feature of the dictionary
        Column("feature", i32, "latent number, from 0"),
        Column("concept", text, "the feature's best concept on the selection set; null if it is silent there"),
        Column("family", text, "family of that concept; null if it has none"),
        Column("label", text, "the concept, if the feature is labelled; else null. `scope` is what the label claims"),
        Column("status", text, "labelled, '<register> only' (evidence in one register alone), or none"),
        Column("grain", text, "labelled: concept, family or norm, the smallest that explains it; else null"),
        Column("scope", text, "labelled: the concept, the family (its most central members) or the norm's end"),
        Column(
            "auroc_scope", f32, "labelled: held-out AUROC of the scope's concepts against the others of their topic"
        ),
        Column("p_within_family", f64, "held-out p of the concept against its own family; null if not asked"),
        Column("p_beyond_norms", f64, "held-out p of the family beyond what the norms predict; null if not asked"),
        Column("given_grain", text, "`grain` by the concept set's own families instead of those that the texts show"),
        Column("given_scope", text, "`scope` by the concept set's own families"),
        Column("auroc_without_named", f32, "`auroc_scope` with the words that the text names taken out of the ranks"),
        Column("auroc_without_person", f32, "the same with first-person narration taken out"),
        Column("auroc_without_length", f32, "the same with the text's length taken out"),
        Column("auroc_without_bag", f32, "the same with a bag of words' score for the scope taken out"),
        Column("p_without_named", f64, "held-out p of the scope with the words named taken out, the larger register's"),
        Column("p_without_person", f64, "the same with first-person narration taken out"),
        Column("p_without_length", f64, "the same with the text's length taken out"),
        Column("p_without_bag", f64, "the same with a bag of words' score taken out, the smaller register's"),
        Column("explained_by", pa.list_(text), "controls under which p is no longer as small as a label's must be"),
        Column("screened", flag, "survived the screen on the selection set"),
        Column("auroc_selection", f32, "mean over registers of its AUROC for `concept` on the selection set"),
        Column("p_selection_first", f64, "exact one-sided p on the selection set, first register"),
        Column("p_selection_second", f64, "the same, second register"),
        Column("auroc_held_out", f32, "mean over cells of its AUROC for `concept` on held-out topics"),
        Column("auroc_<cell>", f32, "held-out AUROC within topic for `concept` in that cell"),
        Column("p_first", f64, "exact one-sided held-out p, first register"),
        Column("p_second", f64, "the same, second register"),
        Column("p", f64, "the larger of p_first and p_second"),
        Column("q", f64, "Benjamini-Hochberg q of p over all that was screened; null if not screened"),
        Column("q_family", f64, "the same for the feature's family; null if not screened"),
        Column("q_norm", f64, "the same for its end of a norm; null if not screened"),
        Column("cosine_dense", f32, "cosine of its decoder direction with the concept's difference of means"),
        Column("density", f32, "share of general-text rows in which it is active"),
        Column("max_activation", f32, "largest activation on the general text"),
        Column("decoder_norm", f32, "Euclidean norm of its decoder direction, residual-stream units"),
        Column("top_tokens", pa.list_(text), "logit lens: tokens its direction raises most"),
        Column("top_logits", pa.list_(f32), "their logit changes for one unit of activation"),
        Column("bottom_tokens", pa.list_(text), "logit lens: tokens its direction lowers most"),
        Column("bottom_logits", pa.list_(f32), "their logit changes for one unit of activation"),
    ),
    "scores": (  # labels/<name>/scores.parquet
        Column("feature", i32, "latent number"),
        Column("concept", text, "concept it is scored for"),
        Column("cell", text, "cell of the concept set"),
        Column("split", text, "selection or held_out"),
        Column("auroc", f32, "AUROC within topic, averaged over topics"),
        Column("low", f32, "lower end of the 95 % interval (exact rank distribution inverted)"),
        Column("high", f32, "upper end"),
        Column("p", f64, "exact one-sided p"),
    ),
    "concepts": (  # labels/<name>/concepts.parquet, one row a concept
        Column("concept", text, "name"),
        Column("family", text, "family; null if it has none"),
        Column("feature", i32, "the one feature chosen for it on the selection set"),
        Column("auroc_selection", f32, "mean over registers of that feature's AUROC on the selection set"),
        Column("auroc_<cell>", f32, "held-out AUROC of that feature"),
        Column("auroc_held_out", f32, "mean over cells of the held-out AUROC"),
        Column("p", f64, "the larger of the two registers' exact held-out p"),
        Column("q", f64, "Benjamini-Hochberg q over all concepts"),
        Column("confirmed", flag, "q is below the false discovery rate of the config"),
        Column("dense_<cell>", f32, "held-out AUROC of the concept's difference-of-means vector"),
        Column("tfidf_<cell>", f32, "held-out AUROC of TF-IDF"),
        Column("labelled_features", pa.list_(i32), "features labelled with it, best held-out AUROC first"),
    ),
    "examples": (  # labels/<name>/examples.parquet
        Column("feature", i32, "latent number"),
        Column("rank", i32, "0 is the strongest context"),
        Column("source", text, "activations/<source> it stems from"),
        Column("document", i32, "document within that source"),
        Column("position", i32, "token position of the peak within the document"),
        Column("value", f32, "activation at the peak"),
        Column("tokens", pa.list_(text), "the context, token by token"),
        Column("values", pa.list_(f32), "activation at each of those tokens; 0 where never read"),
    ),
    # Effects and z are null where nothing was removed exactly: reference controls, and what the screen kept out.
    "effects": (  # causal/<name>/effects.parquet, one row an intervention
        Column("feature", i32, "labelled feature under test"),
        Column("concept", text, "its label, whose word is read out"),
        Column("kind", text, "feature, control (matched unlabelled feature), random (direction) or dense"),
        Column("control", i32, "latent number of the control, else null"),
        Column("half", text, "controls: reference or held_back; else null"),
        Column("let_through", flag, "held-back controls: did the screen let it through to a run; else null"),
        Column("texts", i32, "texts averaged over"),
        Column("active_share", f32, "share of those texts' tokens at which the intervention acts"),
        Column("removed_norm", f32, "mean norm removed where it acts, residual-stream units"),
        Column("effect", f64, "change of the word's log-probability less that of the words outside its family, nats"),
        Column(
            "profile", f64, "change of all words' log-probability, weighted by how like the concept theirs are, nats"
        ),
        Column("specific", f64, "profile in units of how far the words outside the family scatter: what is judged"),
        Column("z", f64, "specific in units of the reference controls' moderated spread, to first order; dense: null"),
        Column("first_order", f64, "profile to first order, nats; null for random"),
        Column("first_order_z", f64, "z to first order (dense: of its profile); null for random"),
    ),
    # Columns of exact effects are null where `removed` is false or null.
    "verdicts": (  # causal/<name>/verdicts.parquet, one row a labelled feature
        Column("feature", i32, "labelled feature"),
        Column("concept", text, "its label"),
        Column("verdict", text, "causal, not shown or not testable"),
        Column("reason", text, "why, in a few words"),
        Column("texts", i32, "texts in which it fires and was tested"),
        Column("effect", f64, "effect of its removal, nats; negative: the word becomes less likely"),
        Column(
            "profile", f64, "change of all words' log-probability, weighted by how like the concept theirs are, nats"
        ),
        Column("specific", f64, "profile in units of how far the words outside the family scatter: what is judged"),
        Column("z", f64, "specific in units of its matched controls' spread, which is of first order"),
        Column("p", f64, "share of all held-back controls with a z at least as low"),
        Column("q", f64, "Benjamini-Hochberg q over the tested features"),
        Column(
            "rank", i32, "rank of the concept's own word among all words by the feature's effect; 1 is lowered most"
        ),
        Column("dense_effect", f64, "positive control: effect of projecting out the concept's dense vector, nats"),
        Column("dense_profile", f64, "its profile, nats"),
        Column("dense_first_order", f64, "its profile to first order, nats"),
        Column("dense_p", f64, "p of dense_first_order among the held-back controls'"),
        Column("kl", f64, "collateral: mean KL divergence on neutral text, nats a token"),
        Column("kl_flag", flag, "kl is above the controls' 95th percentile"),
        Column("first_order", f64, "profile to first order, nats"),
        Column("first_order_z", f64, "z to first order"),
        Column(
            "removed",
            flag,
            "removed exactly; else it is not testable, or its first-order z not among the lowest and p 1",
        ),
    ),
    "joint": (  # causal/<name>/joint.parquet, one row a concept with several labelled features, all removed together
        Column("concept", text, "concept"),
        Column("features", pa.list_(i32), "its labelled features"),
        Column("verdict", text, "causal, not shown or not testable"),
        Column("reason", text, "why, in a few words"),
        Column("texts", i32, "texts averaged over"),
        Column("effect", f64, "effect of removing all of them on its word, nats"),
        Column(
            "profile", f64, "change of all words' log-probability, weighted by how like the concept theirs are, nats"
        ),
        Column("sum_of_single", f64, "sum of the profiles of removing each alone, on the same texts, nats"),
        Column("specific", f64, "profile in units of how far the words outside the family scatter: what is judged"),
        Column("z", f64, "specific in units of the moderated spread of the reference control groups"),
        Column("p", f64, "share of all held-back control groups with a z at least as low"),
        Column("q", f64, "Benjamini-Hochberg q over the tested concepts"),
        Column("dense_profile", f64, "positive control: profile of projecting out the concept's dense vector, nats"),
        Column("dense_p", f64, "its p among the held-back control groups'"),
        Column("reference", pa.list_(f64), "specific of the reference control groups"),
        Column("held_back", pa.list_(f64), "specific of the held-back control groups"),
    ),
    "vector_tokens": (  # vectors/tokens.parquet, one row a place and concept
        Column("place", text, "block after which the vector stands, or `embeddings`"),
        Column("concept", text, "name"),
        Column("norm", f32, "Euclidean norm of the concept's vector, residual-stream units"),
        Column("top_tokens", pa.list_(text), "logit lens: tokens that the unit vector raises most"),
        Column("top_logits", pa.list_(f32), "their logits, but for the final norm's division"),
        Column("bottom_tokens", pa.list_(text), "logit lens: tokens that it lowers most"),
        Column("bottom_logits", pa.list_(f32), "their logits"),
    ),
    "vector_components": (  # vectors/components.parquet, one row a place and concept
        Column("place", text, "block after which the vectors stand, or `embeddings`"),
        Column("concept", text, "name"),
        Column("scores", pa.list_(f32), "scores on the leading principal components of all concepts' vectors"),
    ),
}


def schema(table: str, cells: Iterable[str] = ()) -> pa.Schema:
    """Arrow schema of a table; `<cell>` columns are repeated for each of `cells`."""
    fields = []
    for column in TABLES[table]:
        names = [column.name.replace("<cell>", cell) for cell in cells] if "<cell>" in column.name else [column.name]
        fields += [pa.field(name, column.type) for name in names]
    return pa.schema(fields)


def write_table(path: Path, table: str, columns: dict[str, Any], cells: Iterable[str] = ()) -> None:
    """Write `columns` (name to sequence) as `table`, atomically. Missing or extra columns raise ValueError."""
    wanted = schema(table, cells)
    if set(columns) != set(wanted.names):
        raise ValueError(f"{table}: columns differ by {sorted(set(columns) ^ set(wanted.names))}")
    with written(path) as beside:
        pq.write_table(
            pa.table({name: columns[name] for name in wanted.names}, schema=wanted), beside, compression="zstd"
        )


def read_table(path: Path) -> pa.Table:
    """Read a table of a run folder. Raises `UserError` where it is missing or damaged."""
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run the stage that makes it.") from None
    except (pa.ArrowInvalid, OSError):
        raise UserError(f"{path} is damaged; delete it and run its stage again.") from None
