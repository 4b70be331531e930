"""AP of parts: a detection is right if object and part are right and the mask fits.

A class is a pair (object, part), such as (dog, head). The two heads are independent, so the
score of a pair is the product of two sigmoid scores, that of the part and that of its owner (of
the object head where a model has no owner head); `InstanceEvaluator` does the rest.

Source: arXiv 2307.04767, PASCAL Part results (docs/reference.md, section 15); VLPart, arXiv
2305.11173.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from semsam_jax.core.errors import DataError


@dataclasses.dataclass(frozen=True)
class PairVocabulary:
    """The pairs that a dataset annotates, in a fixed order.

    Attributes:
        objects: int64 [m] object index of each pair.
        parts: int64 [m] part index of each pair (within the part names, from 0).
    """

    objects: np.ndarray
    parts: np.ndarray

    def __len__(self) -> int:
        """Number of pairs, that is of classes."""
        return len(self.objects)

    def index(self, object_ids: np.ndarray, part_ids: np.ndarray) -> np.ndarray:
        """Class of each (object, part); DataError names a pair that is not in the list."""
        known = {pair: i for i, pair in enumerate(zip(self.objects, self.parts, strict=True))}
        pairs = list(zip(np.asarray(object_ids), np.asarray(part_ids), strict=True))
        unknown = sorted({(int(o), int(p)) for o, p in pairs if (o, p) not in known})
        if unknown:
            raise DataError(
                f"PairVocabulary: pairs {unknown[:5]} are annotated but not in the list of "
                f"{len(self)} pairs; build it from all annotations of the set."
            )
        return np.asarray([known[pair] for pair in pairs], np.int64)


@dataclasses.dataclass(frozen=True)
class ClassList:
    """What one dataset annotates; rows of the text tables in the same order.

    Attributes:
        object_ids: int [o] index of each object class in the samples' `object_ids`.
        is_thing: bool [o].
        part_ids: int [r] index of each part class in the samples' `part_ids`.
        pairs: which parts (0..r-1) of which objects (0..o-1) are annotated, for part AP.
        is_federated: images are scored for the classes that each was annotated for.
    """

    object_ids: np.ndarray
    is_thing: np.ndarray
    part_ids: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    pairs: PairVocabulary | None = None
    is_federated: bool = False


def build_pairs(pairs: Iterable[tuple[int, int]]) -> PairVocabulary:
    """Vocabulary of all (object, part) pairs that occur, sorted."""
    listed = sorted({(int(o), int(p)) for o, p in pairs})
    table = np.asarray(listed, np.int64).reshape(-1, 2)
    return PairVocabulary(table[:, 0], table[:, 1])


def pair_scores(
    owner_scores: Float[np.ndarray, "q o"],
    part_scores: Float[np.ndarray, "q r"],
    pairs: PairVocabulary,
) -> Float[np.ndarray, "q m"]:
    """Score of each pair: product of the two heads' scores in 0..1."""
    return owner_scores[:, pairs.objects] * part_scores[:, pairs.parts]


def top_pairs(
    scores: Float[np.ndarray, "q m"], max_detections: int
) -> tuple[Int[np.ndarray, " d"], Int[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """The best query-pair combinations of an image.

    Returns:
        Queries, classes and scores of at most `max_detections` detections, best first.
    """
    flat = scores.ravel()
    best = np.argsort(-flat, kind="stable")[:max_detections]
    return best // scores.shape[1], best % scores.shape[1], flat[best]
