"""A subset of the examples of a dataset."""

import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from data_pipelines.schema import RawExample
from data_pipelines.sources.base import Source
from semsam_jax.core.errors import DataError

HELD_OUT_SHARE = 0.1
"""Fraction of the images that are held out if a dataset has no evaluation split."""


class Subset(Source):
    """The examples of a source at some positions, in their order.

    Args:
        source: the reader.
        positions: which of its examples.

    Attributes:
        positions: the same.
    """

    def __init__(self, source: Source, positions: Sequence[int]):
        self.__dict__.update(source.__dict__)
        self.has_masks, self.is_displayed = source.has_masks, source.is_displayed
        self.is_federated = source.is_federated
        self.index_folder = None
        self._source, self.positions = source, tuple(positions)
        self.example_ids = _Picked(source.example_ids, self.positions)

    def content_hash(self, positions: Sequence[int]) -> str:
        """See `Source.content_hash`; it also says which examples these are."""
        inner = [self.positions[at] for at in positions]
        is_built = self._source.index_folder is not None  # records have a hash of their own
        files = self._source.fingerprint if is_built else self._source.content_hash(inner)
        content = f"{inner} {files}".encode()
        return hashlib.sha256(content).hexdigest()[:16]

    def _files(self, position: int) -> Sequence[pathlib.Path]:
        return self._source._files(self.positions[position])

    def _read(self, position: int) -> RawExample:
        return self._source[self.positions[position]]


def spread(length: int, limit: int | None) -> list[int]:
    """At most `limit` positions, evenly spaced over 0..length - 1."""
    if limit is None or limit >= length:
        return list(range(length))
    return sorted({int(value) for value in np.linspace(0, length - 1, limit)})


def images_in_both(source: Source, other: Source) -> list[str]:
    """Ids of the examples of `source` whose image file `other` reads, too.

    Records hold their images, so none of theirs is found.
    """

    def images(source: Source) -> list[str | None]:
        files = (source.files(position) for position in range(len(source)))
        return [os.path.abspath(of_one[0]) if of_one else None for of_one in files]

    others = set(images(other)) - {None}
    found = zip(source.example_ids, images(source), strict=True)
    return [example_id for example_id, image in found if image in others]


class _Picked(Sequence[str]):
    """Some strings of a sequence, read on demand, since those of records cost a read each."""

    def __init__(self, texts: Sequence[str], positions: tuple[int, ...]):
        self._texts, self._positions = texts, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self._texts[at] for at in self._positions[index])
        return self._texts[self._positions[index]]


def hold_out(
    source: Source, usable: Sequence[int] | np.ndarray, why: str = ""
) -> tuple[Subset, Subset]:
    """Divides a dataset without a split for evaluation: (to train on, held out).

    The choice depends on the image's id alone, so it does not change when images are added.

    Args:
        source: the reader.
        usable: positions of its examples that are whole and have instances; only these are held
            out.
        why: what is wrong with the others, for the message.

    Raises:
        DataError: there are fewer than two of them.
    """
    if len(usable) < 2:
        others = f" ({why})" if why else ""
        raise DataError(
            f"{source.dataset}: {len(usable)} usable images of {len(source)} and no split val, so "
            f"none can be held out for the evaluation{others}; give a val split, or switch the "
            "evaluation off with --config.eval_images=0 --config.keep_best=False"
        )
    ranks = {int(at): _rank(source.example_ids[int(at)]) for at in usable}
    held = {at for at, rank in ranks.items() if rank < HELD_OUT_SHARE}
    held = held or {min(ranks, key=ranks.__getitem__)}
    if len(held) == len(ranks):
        held.remove(max(held, key=ranks.__getitem__))
    rest = [at for at in range(len(source)) if at not in held]
    return Subset(source, rest), Subset(source, sorted(held))


def _rank(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
