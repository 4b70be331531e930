"""The union vocabulary: one index for every class name of every dataset.

Object names come first, part names after them. Classes of different datasets are separate entries
(one dataset's class says nothing about unlabelled instances in another), while texts are cleaned so
that equal names share one embedding.

Sources of the class lists are named in the files in `vocabularies/`.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.schema import DATASETS
from semsam_jax.core.errors import ConfigError, DataError

_FOLDER = pathlib.Path(__file__).parent / "vocabularies"


@dataclasses.dataclass(frozen=True)
class VocabularyEntry:
    """One class of one dataset.

    Attributes:
        dataset: the dataset that annotates this class.
        name: the dataset's own spelling.
        text: cleaned words for display and for the text encoder.
        native_id: the dataset's category id (position in the list for custom datasets).
        is_thing: whether the class is countable; parts are always countable.
    """

    dataset: str
    name: str
    text: str
    native_id: int
    is_thing: bool = True


class Vocabulary:
    """Ordered object and part entries of all datasets in use.

    An object has the index of its entry, a part `num_objects` + the index of its entry.
    """

    def __init__(self, objects: Sequence[VocabularyEntry], parts: Sequence[VocabularyEntry] = ()):
        self.objects = tuple(objects)
        self.parts = tuple(parts)
        self._objects = _Lookup("object", self.objects, 0)
        self._parts = _Lookup("part", self.parts, len(self.objects))

    def __len__(self) -> int:
        return len(self.objects) + len(self.parts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.objects == other.objects and self.parts == other.parts

    def __hash__(self) -> int:
        return hash((self.objects, self.parts))

    @property
    def num_objects(self) -> int:
        """Number of object entries; the index of the first part."""
        return len(self.objects)

    @property
    def num_parts(self) -> int:
        """Number of part entries."""
        return len(self.parts)

    @property
    def object_names(self) -> tuple[str, ...]:
        """Cleaned text of every object entry, in index order."""
        return tuple(entry.text for entry in self.objects)

    @property
    def part_names(self) -> tuple[str, ...]:
        """Cleaned text of every part entry, in index order."""
        return tuple(entry.text for entry in self.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """Cleaned text of the whole vocabulary: objects, then parts."""
        return self.object_names + self.part_names

    @property
    def datasets(self) -> tuple[str, ...]:
        """Datasets that have at least one entry, in order of first appearance."""
        return tuple(dict.fromkeys(entry.dataset for entry in self.objects + self.parts))

    @property
    def groups(self) -> tuple[str, ...]:
        """Dataset and kind of every entry, in index order; names compete within a group only."""
        objects = tuple(f"objects of {entry.dataset}" for entry in self.objects)
        return objects + tuple(f"parts of {entry.dataset}" for entry in self.parts)

    def object_slice(self, dataset: str) -> slice:
        """Returns the index range of a dataset's objects (empty for SA-1B)."""
        return self._objects.span(dataset)

    def part_slice(self, dataset: str) -> slice:
        """Returns the index range of a dataset's parts (empty where it has none)."""
        return self._parts.span(dataset)

    def valid(self, dataset: str) -> np.ndarray:
        """Returns bool [v]: the classes that this dataset annotates; all False for SA-1B."""
        mask = np.zeros(len(self), np.bool_)
        mask[self.object_slice(dataset)] = True
        mask[self.part_slice(dataset)] = True
        return mask

    def object_index(self, dataset: str, name: str) -> int:
        """Returns the index of an object class by the dataset's own name.

        Raises:
            DataError: the dataset has no such class.
        """
        return self._objects.index(dataset, name)

    def part_index(self, dataset: str, name: str) -> int:
        """Returns the index (>= `num_objects`) of a part class by the dataset's own name.

        Raises:
            DataError: the dataset has no such part.
        """
        return self._parts.index(dataset, name)

    def entry(self, index: int) -> VocabularyEntry:
        """Returns the entry behind an index of the union."""
        objects = self.num_objects
        return self.objects[index] if index < objects else self.parts[index - objects]

    def label_text(self, object_id: int, part_id: int = -1) -> str:
        """Returns `whole`, `whole: part` or `(no class)` for messages and pictures."""
        whole = self.entry(object_id).text if object_id >= 0 else "(no class)"
        return f"{whole}: {self.entry(part_id).text}" if part_id >= 0 else whole

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all entries in order; stored with checkpoints."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Returns the vocabulary as JSON text; `from_json` reads it back."""
        rows = {
            key: [list(dataclasses.astuple(entry)) for entry in entries]
            for key, entries in (("objects", self.objects), ("parts", self.parts))
        }
        return json.dumps(rows, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Reads the output of `to_json`.

        Raises:
            DataError: the text is not such a vocabulary.
        """
        try:
            rows = json.loads(text)
            objects = [VocabularyEntry(*row) for row in rows["objects"]]
            parts = [VocabularyEntry(*row) for row in rows["parts"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"vocabulary: cannot read the JSON text: {error}; expected what to_json writes"
            ) from error
        return cls(objects, parts)


class _Lookup:
    """Names of one kind -> index, per dataset; the exact spelling takes precedence over the cleaned
    one.
    """

    def __init__(self, kind: str, entries: Sequence[VocabularyEntry], offset: int):
        self._kind = kind
        self._spans: dict[str, slice] = {}
        self._index: dict[tuple[str, str], int] = {}
        loose: dict[tuple[str, str], int | None] = {}
        for index, entry in enumerate(entries, start=offset):
            if (entry.dataset, entry.name) in self._index:
                raise ConfigError(
                    f"vocabulary: {kind} {entry.name!r} of {entry.dataset} appears twice; "
                    "expected unique names within a dataset"
                )
            span = self._spans.get(entry.dataset, slice(index, index))
            if span.stop != index:
                raise ConfigError(
                    f"vocabulary: the {kind} classes of {entry.dataset} are not contiguous; "
                    "expected one block for each dataset"
                )
            self._spans[entry.dataset] = slice(span.start, index + 1)
            self._index[entry.dataset, entry.name] = index
            for alias in {_fold(entry.name), _fold(entry.text)}:
                key = (entry.dataset, alias)
                loose[key] = index if loose.get(key, index) == index else None
        for key, found in loose.items():
            if found is not None:
                self._index.setdefault(key, found)

    def span(self, dataset: str) -> slice:
        """Indices of a dataset's classes in the vocabulary; empty if it has none."""
        return self._spans.get(dataset, slice(0, 0))

    def index(self, dataset: str, name: str) -> int:
        """Index of a class in the vocabulary; the spelling may differ in case and punctuation.

        Raises:
            DataError: the dataset has no such class.
        """
        found = self._index.get((dataset, name))
        if found is None:
            found = self._index.get((dataset, _fold(name)))
        if found is None:
            size = self.span(dataset)
            raise DataError(
                f"vocabulary of {dataset}: no {self._kind} class {name!r}; it has "
                f"{size.stop - size.start} such classes; check the spelling in the annotation file"
            )
        return found


def _fold(name: str) -> str:
    return " ".join(re.sub(r"[\s_,;-]+", " ", name.replace("/", " or ")).casefold().split())


def clean_name(name: str) -> str:
    """Turns a dataset's class name into plain lower-case words.

    Removes brackets, underscores and COCO's suffixes `-merged`, `-other` and `-stuff`; of a list of
    synonyms the first is kept (docs/reference.md, section 6).
    """
    stem = name
    for ending in ("-merged", "-other", "-stuff"):
        stem = stem.replace(ending, "")
    stem = re.sub(r"\(.*?\)", " ", stem).split(",")[0]
    cleaned = " ".join(stem.replace("_", " ").replace("/", " or ").lower().split())
    return cleaned or name.strip() or "unnamed"


def _texts(names: Sequence[str]) -> list[str]:
    """Cleaned names of a custom dataset; the whole name where cleaning makes two classes one.

    Classes with one text have one embedding, and no model can tell them apart: `screw (new)` and
    `screw (worn)` are no synonyms.
    """
    texts = [clean_name(name) for name in names]
    spellings: dict[str, set[str]] = {}
    for name, text in zip(names, texts, strict=True):
        spellings.setdefault(text, set()).add(_words(name))
    return [
        text if len(spellings[text]) == 1 else _words(name) or text
        for name, text in zip(names, texts, strict=True)
    ]


def _words(name: str) -> str:
    return " ".join(re.sub(r"[()_,;/-]+", " ", name).lower().split())


_PASCAL_FILES = {"merged": "pascal_part", "full": "pascal_part_full"}


def class_file(dataset: str) -> dict:
    """Returns the class list of a built-in dataset: objects, parts and, for parts, pairs."""
    path = _FOLDER / f"{dataset}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def build_vocabulary(
    datasets: Sequence[str] = DATASETS,
    extra: Mapping[str, tuple[Sequence[str], Sequence[str]]] | None = None,
    *,
    pascal_parts: str = "merged",
) -> Vocabulary:
    """Builds the union vocabulary of some datasets.

    Args:
        datasets: some of `DATASETS`; entries follow the order of `DATASETS`, so that the same
            choice always gives the same indices.
        extra: custom datasets, name -> (object names, part names), appended in order.
        pascal_parts: the part list of PASCAL Part, `merged` (30 words) or `full` (91 names).

    Raises:
        ConfigError: an unknown dataset or part list, or an own set with the name of a
            built-in one.
    """
    if pascal_parts not in _PASCAL_FILES:
        raise ConfigError(
            f"vocabulary: pascal_parts={pascal_parts!r}; expected one of {list(_PASCAL_FILES)}"
        )
    extra = dict(extra or {})
    unknown = [name for name in datasets if name not in DATASETS]
    if unknown:
        raise ConfigError(
            f"vocabulary: unknown datasets {unknown}; expected names out of {list(DATASETS)}; "
            "give your own sets by `extra`"
        )
    taken = [name for name in extra if name in DATASETS]
    if taken:
        raise ConfigError(
            f"vocabulary: own sets {taken} carry the name of a built-in dataset; rename them"
        )
    objects: list[VocabularyEntry] = []
    parts: list[VocabularyEntry] = []
    for dataset in DATASETS:
        if dataset not in datasets or dataset == "sa1b":
            continue
        classes = class_file(_PASCAL_FILES[pascal_parts] if dataset == "pascal_part" else dataset)
        for kind, entries in (("objects", objects), ("parts", parts)):
            entries.extend(
                VocabularyEntry(
                    dataset, row["name"], row["text"], row["id"], row.get("is_thing", True)
                )
                for row in classes[kind]
            )
    for dataset, (object_names, part_names) in extra.items():
        for names, entries in ((object_names, objects), (part_names, parts)):
            entries.extend(
                VocabularyEntry(dataset, name, text, position)
                for position, (name, text) in enumerate(zip(names, _texts(names), strict=True))
            )
    return Vocabulary(objects, parts)
