"""Embeddings of a dataset's class names, from the text source of the checkpoint."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import linen as nn

from semsam_jax.core.errors import CheckpointError
from semsam_jax.core.structs import TextTable
from semsam_jax.text.tables import TextEmbeddings
from semsam_jax.text.templates import embed_names
from semsam_jax.text.tokenizer import Tokenizer


def embed_classes(
    model: nn.Module | None, params: dict, meta: Mapping, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings of names with the text source of a checkpoint.

    Args:
        model: `SemanticSAM`; needed where the checkpoint has a text tower.
        params: its parameters.
        meta: the checkpoint's meta; `meta["text"]` is {"source": "table" | "encoder", ...}.
        names: class names.

    Returns:
        float32 [n, d] rows and bool [n], False where the table does not know the name.

    Raises:
        CheckpointError: the class heads were never trained, or the text source is unknown.
    """
    if not meta.get("class_heads_trained"):
        raise CheckpointError(
            "evaluate: the class heads of this checkpoint were never trained, so there is nothing "
            "to score with names; use a prompt suite, or a checkpoint trained on labelled data."
        )
    text = meta.get("text") or {}
    source = text.get("source")
    if source == "table":
        return TextEmbeddings.load(text.get("table") or None).lookup(names)
    if source == "encoder":
        params = jax.device_put(params)
        encode = jax.jit(lambda p, ids: model.apply({"params": p}, ids, method="encode_text"))
        tokenizer = Tokenizer(model.config.text.context_length)
        rows = embed_names(lambda ids: np.asarray(encode(params, ids)), names, tokenizer)
        return rows, np.ones(len(names), bool)
    raise CheckpointError(
        f"evaluate: the checkpoint's text source is {source!r}, wanted table or encoder; train or "
        f"convert it again with this release."
    )


def text_table(rows: np.ndarray, num_objects: int) -> TextTable:
    """Splits rows into objects and parts."""
    return TextTable(objects=rows[:num_objects], parts=rows[num_objects:])
