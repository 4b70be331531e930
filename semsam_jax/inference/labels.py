"""Names to choose from: what a user writes -> embeddings, and the best name of a mask."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from semsam_jax.core.errors import CheckpointError, PromptError
from semsam_jax.core.structs import TextTable
from semsam_jax.inference.loading import LoadedModel
from semsam_jax.inference.requests import Name

Labels = str | Sequence[str] | Mapping[str, Sequence[str]]

_MIN_ROWS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class LabelSet:
    """Object and part names with their embeddings.

    Attributes:
        objects: names; may be empty if there are parts.
        parts: names; may be empty.
        exact: embeddings, one row for each name.
        table: the same, padded with zero rows to a power of two so that few programs are
            compiled. Scores of padding rows are never read.
    """

    objects: tuple[str, ...]
    parts: tuple[str, ...]
    exact: TextTable
    table: TextTable

    def best_object(self, logits: Float[np.ndarray, " v"]) -> Name | None:
        """Best object name for one token, None if there are no object names."""
        return _best(self.objects, logits)

    def best_part(self, logits: Float[np.ndarray, " v"]) -> Name | None:
        """Best part name for one token, None if there are no part names."""
        return _best(self.parts, logits)


def label_set(model: LoadedModel, labels: Labels) -> LabelSet:
    """Embeds names with the text source of the checkpoint.

    Args:
        model: its `meta` says where names come from and whether its class heads are trained.
        labels: `"dog,cat;head,leg"` (objects;parts), the name of a built-in vocabulary, a
            sequence of object names, or {"objects": [...], "parts": [...]}.

    Raises:
        PromptError: no names, or names that the text source does not know.
        CheckpointError: the class heads were never trained, so names would be invented.
    """
    if not model.meta.get("class_heads_trained"):
        raise CheckpointError(
            "labels: the class heads of this checkpoint were never trained, so its names would "
            "be invented; leave labels out, or use a checkpoint trained on labelled data."
        )
    from semsam_jax.text import embed_names

    objects, parts = parse_labels(labels)
    embed = embed_names(model.meta["text"], model.encode_text)
    rows = embed(objects + parts)
    exact = TextTable(objects=rows[: len(objects)], parts=rows[len(objects) :])
    return LabelSet(
        objects, parts, exact, TextTable(objects=_pad(exact.objects), parts=_pad(exact.parts))
    )


def parse_labels(labels: Labels) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns object and part names; see `label_set`."""
    objects: Sequence[str]
    parts: Sequence[str] = ()
    if isinstance(labels, str):
        first, _, second = labels.partition(";")
        objects, parts = first.split(","), second.split(",")
    elif isinstance(labels, Mapping):
        unknown = sorted(set(labels) - {"objects", "parts"})
        if unknown:
            raise PromptError(f"labels: got the keys {unknown}; wanted objects and parts.")
        objects, parts = labels.get("objects", ()), labels.get("parts", ())
    else:
        objects = labels
    cleaned = []
    for names in (objects, parts):
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise PromptError(f"labels: got {names!r}; wanted a list of strings.")
        cleaned.append(tuple(dict.fromkeys(n.strip() for n in names if n.strip())))
    if not cleaned[0] and not cleaned[1]:
        raise PromptError('labels: no names given; wanted for example "dog,cat;head,leg".')
    return cleaned[0], cleaned[1]


def _best(names: tuple[str, ...], logits: np.ndarray) -> Name | None:
    if not names:
        return None
    logits = np.asarray(logits, np.float64)[: len(names)]
    best = int(logits.argmax())
    return Name(names[best], float(1 / (1 + np.exp(-logits[best]))))


def _pad(rows: Float[np.ndarray, "v d"]) -> Float[np.ndarray, "u d"]:
    size = max(_MIN_ROWS, 1 << (max(1, len(rows)) - 1).bit_length())
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))
