"""Embeddings of a dataset's class names, from the text source of the checkpoint."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import jax
import numpy as np
from flax import linen as nn

from semsam_jax.core.errors import CheckpointError
from semsam_jax.core.structs import TextTable
from semsam_jax.evals.part_ap import ClassList, PairVocabulary
from semsam_jax.text.tables import table_of
from semsam_jax.text.templates import embed_names
from semsam_jax.text.tokenizer import Tokenizer


def embed_classes(
    model: nn.Module | None,
    params: dict,
    meta: Mapping,
    names: Sequence[str],
    groups: Sequence[Hashable] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings of names with the text source of a checkpoint.

    Args:
        model: `SemanticSAM`; needed where the checkpoint has a text tower.
        params: its parameters.
        meta: the checkpoint's meta; `meta["text"]` is {"source": "table" | "encoder", ...}.
        names: class names.
        groups: of each name; a name that the table reads as another one of its group is not known
            (`TextEmbeddings.find_own`).

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
        return table_of(text, params).lookup(names, groups)
    if source == "encoder":
        params = jax.device_put(params)
        encode = jax.jit(lambda p, ids: model.apply({"params": p}, ids, method="encode_text"))
        tokenizer = Tokenizer(model.config.text.context_length)
        rows = embed_names(lambda ids: np.asarray(encode(params, ids)), names, tokenizer)
        return rows, np.ones(len(names), bool)
    raise CheckpointError(
        f"evaluate: the checkpoint's text source is {source!r}, expected table or encoder; train "
        f"or convert it again with this release."
    )


def text_table(rows: np.ndarray, num_objects: int) -> TextTable:
    """Splits rows into objects and parts."""
    return TextTable(objects=rows[:num_objects], parts=rows[num_objects:])


@dataclasses.dataclass(frozen=True)
class KnownClasses:
    """The classes of a dataset whose names have an embedding.

    Attributes:
        classes: they, in the order of the dataset.
        text: their embeddings.
        names: their names, objects first.
        notes: how many there are, and which are left out.
        is_complete: whether none is left out.
    """

    classes: ClassList
    text: TextTable
    names: tuple[str, ...]
    notes: dict[str, str]
    is_complete: bool


def known_classes(
    model: nn.Module | None,
    params: dict,
    meta: Mapping,
    classes: ClassList,
    object_names: Sequence[str],
    part_names: Sequence[str],
) -> KnownClasses:
    """Embeds the names of a dataset's classes; those without an embedding are left out and told.

    Args:
        model: see `embed_classes`.
        params: likewise.
        meta: likewise.
        classes: of the dataset.
        object_names: names of the objects, in the order of `classes`.
        part_names: names of the parts likewise; none leaves the parts out.
    """
    names = [*object_names, *part_names]
    num_objects = len(object_names)
    groups = [index < num_objects for index in range(len(names))]
    rows, found = embed_classes(model, params, meta, names, groups)
    keep, keep_parts = np.flatnonzero(found[:num_objects]), np.flatnonzero(found[num_objects:])
    pairs = classes.pairs
    if pairs is not None and part_names:
        kept = np.isin(pairs.objects, keep) & np.isin(pairs.parts, keep_parts)
        pairs = PairVocabulary(
            np.searchsorted(keep, pairs.objects[kept]),
            np.searchsorted(keep_parts, pairs.parts[kept]),
        )
    has_parts = bool(part_names)
    left_out = [name for name, is_found in zip(names, found, strict=True) if not is_found]
    notes = {"classes": f"{len(keep)} of {num_objects} objects"}
    if part_names:
        notes["classes"] += f", {len(keep_parts)} of {len(part_names)} parts"
    if left_out:
        notes["left out, no embedding of the name"] = ", ".join(left_out)
    return KnownClasses(
        classes=ClassList(
            object_ids=classes.object_ids[keep],
            is_thing=classes.is_thing[keep],
            part_ids=classes.part_ids[keep_parts] if has_parts else np.zeros(0, np.int64),
            pairs=pairs if has_parts else None,
            is_federated=classes.is_federated,
        ),
        text=text_table(rows[found], len(keep)),
        names=tuple(name for name, is_found in zip(names, found, strict=True) if is_found),
        notes=notes,
        is_complete=not left_out,
    )
