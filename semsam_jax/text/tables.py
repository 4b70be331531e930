"""Stored embeddings of class names, for models without a text tower.

The embedded table `data/clip_rn50.npz` holds the CLIP RN50 embeddings of the prompt
"a {name}" that VLPart publishes (MIT, see `data/LICENSE.VLPart.txt`). It is built by

    python -m semsam_jax.text.tables --from DIR --out FILE.npz

where DIR holds NAME.npy (float16 rows) and NAME.names.json (their names) for each list.
"""

import argparse
import dataclasses
import difflib
import functools
import json
import os
import re
import sys
import zipfile
from collections.abc import Hashable, Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from semsam_jax.core.errors import ConfigError, SemSamError
from semsam_jax.core.spelling import spelling_key
from semsam_jax.text.templates import strip_endings, unit

# Lists in order of preference (a name found twice keeps its first row), and the separator of whole
# and part in each.
LISTS = {
    "lvis_v1": None,
    "coco": None,
    "voc": None,
    "paco": ":",
    "pascal_part": ":",
    "partimagenet": " ",
}
# Misspelt part words of the lists; the derived rows carry the right spelling.
_RESPELLED = {"colied tube": "coiled tube", "tier": "tire"}
_SOURCE = (
    "CLIP RN50 text embeddings of 'a {name}' from facebookresearch/VLPart datasets/metadata, MIT"
)
_DERIVED = "mean of the unit embeddings of the same part of every whole"


@dataclasses.dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """Names and their embeddings.

    Attributes:
        names: normalised names (see `normalise`), all different.
        rows: float16 or float32 [len(names), d], not normalised.
        meta: where the rows come from; `derived` lists the names that are means, `learned` those
            that a model learned (`with_learned`).
    """

    names: tuple[str, ...]
    rows: np.ndarray
    meta: dict

    @classmethod
    def load(cls, path: str | os.PathLike | None = None) -> "TextEmbeddings":
        """Reads a table; the embedded one without a path.

        Raises:
            ConfigError: no such file, or not a table.
        """
        file = path or resources.files("semsam_jax.text") / "data" / "clip_rn50.npz"
        try:
            with open(str(file), "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                names, rows = arrays["names"], arrays["rows"]
                meta = json.loads(str(arrays["meta"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"text.table {file}: cannot be read as a table of names ({error}); build one "
                f"with `python -m semsam_jax.text.tables --from DIR --out FILE.npz`."
            ) from error
        if rows.ndim != 2 or names.shape != rows.shape[:1]:
            raise ConfigError(
                f"text.table {file}: {names.shape} names and rows of shape {rows.shape}, expected "
                f"one row per name."
            )
        return cls(tuple(str(name) for name in names), rows, meta)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the table as one `.npz` file."""
        with open(path, "wb") as stream:
            np.savez_compressed(
                stream,
                names=np.array(self.names),
                rows=self.rows.astype(np.float16),
                meta=np.array(json.dumps(self.meta)),
            )

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return self.rows.shape[1]

    def lookup(
        self, names: Sequence[str], groups: Sequence[Hashable] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of names.

        A name is tried as it is, with and without a bracketed qualifier, then each of its
        synonyms ("a, b", "a or b", "a/b"), then without a plural s; case, underscores,
        hyphens and spaces never matter. Of "object:part" with an unknown object, the part alone
        is taken.

        Args:
            names: to look up.
            groups: of each name; with them, only rows of `find_own` are found.

        Returns:
            float32 [n, d] unit rows (zero where not found) and bool [n], found.
        """
        embeddings = np.zeros((len(names), self.dim), np.float32)
        index = self.find(names) if groups is None else self.find_own(names, groups)
        for number in np.flatnonzero(index >= 0):
            embeddings[number] = unit(self.rows[index[number]])
        return embeddings, index >= 0

    def find(self, names: Sequence[str]) -> np.ndarray:
        """int64 [n]: row of each name, read as `lookup` reads it, or -1."""
        found = [self._find(name) for name in names]
        return np.array([-1 if row is None else row for row in found], np.int64)

    def find_own(self, names: Sequence[str], groups: Sequence[Hashable]) -> np.ndarray:
        """As `find`, but -1 for a name whose row belongs to a different name of its group.

        "grape" and "grapes" have one row, and classes with one row cannot be told apart. The name
        that is spelled like the row keeps it, or else the first. Names that differ only in case,
        underscores, hyphens and spaces are the same and share it.

        Args:
            names: to look up.
            groups: of each name, such as a dataset; names of different groups may share a row.
        """
        rows = self.find(names).tolist()
        spelled = [spelling_key(normalise(name)) for name in names]
        owner: dict[tuple[int, Hashable], tuple[int, str]] = {}
        for row, group, own in zip(rows, groups, spelled, strict=True):
            exact = [spelling_key(spell(self.names[row])) for spell in (str, _without_brackets)]
            rank = exact.index(own) if own in exact else len(exact)
            if rank < owner.get((row, group), (len(exact) + 1, ""))[0]:
                owner[row, group] = rank, own
        each = zip(rows, groups, spelled, strict=True)
        return np.array([r if owner[r, g][1] == own else -1 for r, g, own in each], np.int64)

    def with_learned(self, names: Sequence[str], rows: np.ndarray) -> "TextEmbeddings":
        """The table with names that a model learned behind its own, which come first.

        Args:
            names: one for each row.
            rows: float [len(names), d].
        """
        if not len(names):
            return self
        meta = {**self.meta, "learned": list(names)}
        rows = np.concatenate([self.rows, np.asarray(rows, np.float32)])
        return TextEmbeddings(self.names + tuple(map(normalise, names)), rows, meta)

    def nearest_names(self, name: str, count: int = 3) -> list[str]:
        """Names of the table that are spelled most like `name`, best first."""
        return difflib.get_close_matches(normalise(name), self.names, n=count, cutoff=0.5)

    def _find(self, name: str) -> int | None:
        for candidate in _spellings(name):
            row = self._index.get(spelling_key(candidate))
            if row is not None:
                return row
        return None

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        index: dict[str, int] = {}
        for spelling in (str, _without_brackets):  # exact names take precedence over shortened ones
            for row, name in enumerate(self.names):
                index.setdefault(spelling_key(spelling(name)), row)
        return index


def table_of(text: Mapping, params: Mapping | None) -> TextEmbeddings:
    """The table of names of a checkpoint, those that it learned included.

    Args:
        text: the entry `text` of its meta, with "table" and "learned".
        params: its parameters; None if only the names matter.

    Raises:
        ConfigError: no such table.
    """
    table = TextEmbeddings.load(text.get("table") or None)
    learned = text.get("learned") or ()
    rows = np.zeros((len(learned), table.dim), np.float32)
    if learned and params is not None:
        rows = np.asarray(params["learned_names"]["rows"])
    return table.with_learned(learned, rows)


def normalise(name: str) -> str:
    """Lower case, spaces for underscores, no COCO endings, brackets kept."""
    return " ".join(strip_endings(name).replace("_", " ").casefold().split())


def build_table(folder: str | os.PathLike) -> TextEmbeddings:
    """Builds a table from a folder of NAME.npy and NAME.names.json.

    Equal names keep the first row in the order of `LISTS`. Every part without a row of its own gets
    the mean over its wholes and is listed in `meta["derived"]`.

    Raises:
        ConfigError: no list in the folder, or names and rows do not match.
    """
    root = Path(folder)
    rows: dict[str, np.ndarray] = {}
    parts: dict[str, list[np.ndarray]] = {}
    used = [name for name in LISTS if (root / f"{name}.npy").is_file()]
    if not used:
        raise ConfigError(f"{root}: holds none of {', '.join(f'{n}.npy' for n in LISTS)}.")
    for list_name in used:
        separator = LISTS[list_name]
        for name, row in _read_list(root, list_name):
            rows.setdefault(normalise(name), row)
            if separator is not None and separator in name:
                part = normalise(name.split(separator, 1)[1])
                parts.setdefault(_RESPELLED.get(part, part), []).append(unit(row))
    derived = {part: np.mean(v, axis=0) for part, v in parts.items() if part not in rows}
    merged = rows | {part: row.astype(np.float16) for part, row in derived.items()}
    if len({row.shape for row in merged.values()}) > 1:
        raise ConfigError(f"{root}: the lists have embeddings of different lengths.")
    meta = {
        "source": _SOURCE,
        "lists": used,
        "derived": sorted(derived),
        "derived_how": _DERIVED,
    }
    return TextEmbeddings(tuple(merged), np.stack(list(merged.values())).astype(np.float16), meta)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the builder; returns the exit code."""
    parser = argparse.ArgumentParser(description="Builds a table of name embeddings.")
    parser.add_argument("--from", dest="folder", required=True, help="folder of .npy and .json")
    parser.add_argument("--out", required=True, help="file to write, .npz")
    args = parser.parse_args(arguments)
    try:
        table = build_table(args.folder)
        table.save(args.out)
    except (SemSamError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    derived = len(table.meta["derived"])
    size = Path(args.out).stat().st_size
    print(f"{args.out}: {len(table.names)} names ({derived} derived), {table.dim}-d, {size} bytes")
    return 0


def _read_list(root: Path, list_name: str) -> list[tuple[str, np.ndarray]]:
    try:
        rows = np.load(root / f"{list_name}.npy", allow_pickle=False)
        names = json.loads((root / f"{list_name}.names.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{root}: list {list_name} cannot be read ({error}).") from error
    if rows.ndim != 2 or len(names) != len(rows):
        raise ConfigError(
            f"{root}: list {list_name} has {len(names)} names and rows of shape {rows.shape}, "
            f"expected one row per name."
        )
    return list(zip(names, rows, strict=True))


def _spellings(name: str) -> list[str]:
    plain = normalise(name)
    whole = [plain, plain.replace("(", "").replace(")", ""), _without_brackets(plain)]
    for separator in (",", "/", " or "):
        if separator in plain:
            whole += [_without_brackets(piece) for piece in plain.split(separator)]
    # Of "object:part" the part alone comes last, as the loosest match.
    tried = [piece.strip() for piece in whole] + [plain.rsplit(":", 1)[-1].strip()]
    singular = [one for piece in tried for one in _singulars(piece)]
    return [piece for piece in tried + singular if piece]


def _singulars(name: str) -> list[str]:
    pairs = (("s", ""), ("ies", "y"), ("ves", "f"), ("shes", "sh"), ("ches", "ch"))
    if name.endswith("ss"):
        return []
    return [name.removesuffix(end) + start for end, start in pairs if name.endswith(end)]


def _without_brackets(name: str) -> str:
    return " ".join(re.sub(r"\([^)]*\)", " ", name).replace(" :", ":").split())


if __name__ == "__main__":
    sys.exit(main())
