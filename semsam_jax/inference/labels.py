"""Class names of a request: parsing, embedding, and the best name of a mask."""

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from semsam_jax.core.errors import CheckpointError, PromptError
from semsam_jax.core.structs import Predictions, TextTable
from semsam_jax.inference.loading import LoadedModel
from semsam_jax.inference.name_scores import AS_THEY_ARE, ScoreScale, name_scales
from semsam_jax.inference.results import ScoredName, UnknownName
from semsam_jax.text.tables import table_of
from semsam_jax.text.templates import embed_names
from semsam_jax.text.tokenizer import Tokenizer

Labels = str | Sequence[str] | Mapping[str, Sequence[str]]

VOCABULARIES = ("coco", "ade20k", "objects365", "paco", "pascal_part", "part_imagenet")

DEFAULT_NAME_THRESH = 0.25
"""Score from which a name counts as sure, where the checkpoint does not say."""

_MIN_ROWS = 16
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LabelNames:
    """Requested class names, before they are embedded.

    Attributes:
        objects: object names, all different.
        parts: part names, all different.
        stuff: the objects that are not countable.
        vocabulary: name of the built-in vocabulary they come from, else None.
    """

    objects: tuple[str, ...]
    parts: tuple[str, ...]
    stuff: frozenset[str] = frozenset()
    vocabulary: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class LabelSet:
    """Object and part names with their embeddings.

    Attributes:
        objects: names; may be empty if there are parts.
        parts: names; may be empty.
        unknown: names that the text source does not know; they are in neither list.
        exact: embeddings, one row for each name.
        stuff: the objects that are not countable (sky, grass).
        table: the same as `exact`, padded with zero rows to a power of two so that few programs are
            compiled. Scores of padding rows are never read.
        object_thresh: score from which an object name counts as sure.
        part_thresh: the same for part names.
        scales: how scores of objects and of parts come from logits.
    """

    objects: tuple[str, ...]
    parts: tuple[str, ...]
    stuff: frozenset[str]
    exact: TextTable
    table: TextTable
    unknown: tuple[UnknownName, ...] = ()
    object_thresh: float = DEFAULT_NAME_THRESH
    part_thresh: float = DEFAULT_NAME_THRESH
    scales: tuple[ScoreScale, ScoreScale] = AS_THEY_ARE

    @property
    def is_empty(self) -> bool:
        """Whether no name is left, so that masks stay without names."""
        return not self.objects and not self.parts

    def best_object(self, logits: Float[np.ndarray, " v"]) -> ScoredName | None:
        """Best object name for one token, None if there are no object names."""
        return _best(self.objects, logits, self.object_thresh, self.scales[0])

    def best_part(self, logits: Float[np.ndarray, " v"]) -> ScoredName | None:
        """Best part name for one token, None if there are no part names."""
        return _best(self.parts, logits, self.part_thresh, self.scales[1])


def label_set(model: LoadedModel, labels: Labels) -> LabelSet:
    """Embeds names with the text source of the checkpoint.

    Names that it does not know are left out and listed in `LabelSet.unknown`; a warning lists them
    with the nearest known ones, unless it would name no new one.

    Args:
        model: its `meta` says where names come from and whether its class heads are trained.
        labels: `"dog,cat;head,leg"` (objects;parts), the name of a built-in vocabulary, a
            sequence of object names, or {"objects": [...], "parts": [...]}.

    Raises:
        PromptError: no names, or not text.
        CheckpointError: the class heads were never trained, so names would be meaningless.
    """
    if not knows_names(model.meta):
        raise CheckpointError(
            "labels: the class heads of this checkpoint were never trained, so its names would "
            "be meaningless; leave labels out, or use a checkpoint trained on labelled data."
        )
    names = parse_labels(labels)
    if names.parts and not model.meta.get("parts_trained", True):
        raise CheckpointError(
            f"labels: {names.parts[0]!r} is the name of a part, and the part head of this "
            f"checkpoint was never trained; give names of objects alone."
        )
    rows = _embed(model, names)
    objects = tuple(name for name in names.objects if name in rows)
    parts = tuple(name for name in names.parts if name in rows)
    dim = model.module.config.decoder.text_dim
    exact = TextTable(
        objects=np.array([rows[n] for n in objects], np.float32).reshape(-1, dim),
        parts=np.array([rows[n] for n in parts], np.float32).reshape(-1, dim),
    )
    table = TextTable(objects=_pad(exact.objects), parts=_pad(exact.parts))
    unknown = tuple(
        UnknownName(name, model.unknown_names.get(name, ()))
        for name in dict.fromkeys(names.objects + names.parts)
        if name not in rows
    )
    stuff, thresholds = names.stuff & set(objects), stored_name_thresholds(model.meta)
    scales = name_scales(model.meta)
    return LabelSet(objects, parts, stuff, exact, table, unknown, *thresholds, scales)


def knows_names(meta: Mapping) -> bool:
    """Whether a checkpoint has learned to name what it finds."""
    source = (meta.get("text") or {}).get("source")
    return bool(meta.get("class_heads_trained")) and source != "none"


def stored_name_thresholds(meta: Mapping) -> tuple[float, float]:
    """Scores from which an object and a part name count as sure, as the checkpoint says."""
    stored = meta.get("name_thresholds") or {}
    return tuple(float(stored.get(kind, DEFAULT_NAME_THRESH)) for kind in ("object", "part"))


def object_logits(found: Predictions, num_parts: int) -> Float[Array | np.ndarray, "*q v"]:
    """How well each object name fits each token: as what it is, or as what it is a part of.

    The owner projection is trained on parts only, so it counts only for tokens that match one of
    the requested parts.

    Args:
        found: predictions with names.
        num_parts: names of parts; what lies behind them in the logits is padding.
    """
    whole, owner = found.object_logits, found.owner_logits
    if owner is None or not num_parts:
        return whole
    xp = np if isinstance(whole, np.ndarray) else jnp
    part = found.part_logits[..., :num_parts].max(-1, keepdims=True)
    return xp.maximum(whole, xp.minimum(owner, part))


def parse_labels(labels: Labels) -> LabelNames:
    """Returns the names that `labels` stands for; see `label_set`."""
    objects: Sequence[str]
    parts: Sequence[str] = ()
    if isinstance(labels, str):
        key = labels.strip().casefold().replace("-", "_")
        if key in VOCABULARIES:
            return built_in_vocabulary(key)
        first, _, second = labels.partition(";")
        if ";" in second:
            raise PromptError(
                f"labels: got {labels[:60]!r}; expected one semicolon, between the names of "
                f"objects and those of parts, and commas between names."
            )
        objects, parts = first.split(","), second.split(",")
    elif isinstance(labels, Mapping):
        unknown = sorted(str(key) for key in labels if key not in ("objects", "parts"))
        if unknown:
            raise PromptError(f"labels: got the keys {unknown}; expected objects and parts.")
        objects, parts = labels.get("objects", ()), labels.get("parts", ())
    else:
        objects = labels
    cleaned = []
    for names in (objects, parts):
        is_list = isinstance(names, Iterable) and not isinstance(names, str | bytes)
        try:
            names = tuple(names) if is_list else None
        except Exception:  # whatever the iteration over an object raises
            names = None
        if names is None or not all(isinstance(name, str) for name in names):
            raise PromptError(
                f"labels: got {str(names or labels)[:60]}; expected a list of strings."
            )
        for name in names:
            if not name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in name):
                raise PromptError(f"labels: {name[:60]!a} is no UTF-8 text; check its encoding.")
        cleaned.append(tuple(dict.fromkeys(n.strip() for n in names if n.strip())))
    if not cleaned[0] and not cleaned[1]:
        raise PromptError(
            f'labels: no names given; expected for example "dog,cat;head,leg", or one of '
            f"{', '.join(VOCABULARIES)}."
        )
    return LabelNames(*cleaned)


def built_in_vocabulary(name: str) -> LabelNames:
    """Names of a public dataset's classes, out of `VOCABULARIES`."""
    # The class lists are data files of the input pipeline; none of its code is used here.
    file = resources.files("data_pipelines") / "vocabularies" / f"{name}.json"
    classes = json.loads(file.read_text(encoding="utf-8"))
    objects, parts = (
        tuple(dict.fromkeys(row["text"] for row in classes[kind])) for kind in ("objects", "parts")
    )
    stuff = frozenset(r["text"] for r in classes["objects"] if not r.get("is_thing", True))
    return LabelNames(objects, parts, stuff, name)


def _embed(model: LoadedModel, names: LabelNames) -> dict[str, np.ndarray]:
    """Unit embedding of every name that the text source knows; kept with the model."""
    known = dict(model.name_embeddings)  # a copy: a server may forget names meanwhile
    new = [name for name in dict.fromkeys(names.objects + names.parts) if name not in known]
    text, learned = model.meta.get("text") or {}, {}
    if text.get("source") == "table":
        table = table_of(text, model.params)
        wanted = model.module.config.decoder.text_dim
        if table.dim != wanted:
            raise CheckpointError(
                f"labels: the table of names has {table.dim} dimensions, the model wants "
                f"{wanted}; give the checkpoint's own table in its meta (text.table)."
            )
        rows, found = table.lookup(new)
        missing = [name for name, ok in zip(new, found, strict=True) if not ok]
        fresh = [name for name in missing if name not in model.unknown_names]
        for name in fresh:
            # The search takes ten milliseconds; of a built-in vocabulary nobody chooses words.
            near = table.nearest_names(name) if names.vocabulary is None else ()
            model.unknown_names[name] = tuple(near)
        if fresh:  # all are listed, those that another call has listed too, as is their number
            total = len(dict.fromkeys(names.objects + names.parts))
            _log.warning("%s", unknown_message(missing, model.unknown_names, total))
        learned = {n: row for n, row, ok in zip(new, rows, found, strict=True) if ok}
    elif new:
        config = model.module.config.text
        if config is None:
            raise CheckpointError("labels: this checkpoint has no text tower to encode names.")
        rows = embed_names(model.encode_text, new, Tokenizer(config.context_length))
        learned = dict(zip(new, rows, strict=True))
    model.name_embeddings.update(learned)
    known |= learned
    return {name: known[name] for name in names.objects + names.parts if name in known}


def unknown_message(names: Sequence[str], nearest: Mapping[str, tuple], total: int) -> str:
    """Says which names are left out, with the nearest known ones."""
    shown = [str(UnknownName(name, nearest.get(name, ()))) for name in names[:8]]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (
        f"labels: {len(names)} of {total} names are not known to the checkpoint and are left out: "
        f"{', '.join(shown)}{more}"
    )


def _best(
    names: tuple[str, ...], logits: np.ndarray, threshold: float, scale: ScoreScale
) -> ScoredName | None:
    if not names:
        return None
    logits = np.asarray(logits, np.float64)[: len(names)]
    best = int(logits.argmax())
    score = float(scale.scores(logits[best]))
    return ScoredName(names[best], score, score >= threshold)


def _pad(rows: Float[np.ndarray, "v d"]) -> Float[np.ndarray, "u d"]:
    size = max(_MIN_ROWS, 1 << (max(1, len(rows)) - 1).bit_length())
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))
