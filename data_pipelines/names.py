"""What the spelling of class names means for training: equal names, left and right sides."""

import re
from collections.abc import Collection, Hashable, Sequence

import numpy as np
from jaxtyping import Int64

from data_pipelines.vocabulary import Vocabulary
from semsam_jax.core.spelling import spelling_key

_OTHER_SIDE = {"left": "right", "right": "left"}


def first_spellings(names: Sequence[str], groups: Sequence[Hashable]) -> Int64[np.ndarray, " v"]:
    """Index of the first name of the same group that is spelled alike, mostly its own.

    No model can tell such names apart, because they have one text embedding (`spelling_key`).

    Args:
        names: class names.
        groups: of each name; names of different groups never meet (`Vocabulary.groups`).
    """
    first: dict[tuple[Hashable, str], int] = {}
    return np.array(
        [
            first.setdefault((group, spelling_key(name)), index)
            for index, (name, group) in enumerate(zip(names, groups, strict=True))
        ],
        np.int64,
    )


def row_labels(vocabulary: Vocabulary) -> Int64[np.ndarray, "2 v"]:
    """The class that an instance of each class is in a row: as the image is, and mirrored.

    Names that are spelled alike count as the first of them. In a mirrored image the left hand is a
    right one, if the dataset has both classes.
    """
    first = first_spellings(vocabulary.names, vocabulary.groups)
    mirrored = np.array(
        [index if other is None else other for index, other in enumerate(_others(vocabulary))],
        np.int64,
    )
    return np.stack([first, first[mirrored[first]]])


def name_notes(vocabulary: Vocabulary, flipped: Collection[str]) -> list[str]:
    """Says which names a dataset should change, and whose sides are mixed by flips.

    Args:
        vocabulary: the classes.
        flipped: datasets whose images are mirrored at random.
    """
    said = []
    entries = vocabulary.objects + vocabulary.parts
    first = first_spellings(vocabulary.names, vocabulary.groups)
    for index in np.flatnonzero(np.bincount(first, minlength=len(first)) > 1).tolist():
        same = [entries[i].name for i in np.flatnonzero(first == index)]
        said.append(
            f"{entries[index].dataset}: the classes {' and '.join(map(repr, same))} have the same "
            f"name and are trained as one; merge or rename them in the data."
        )
    others = _others(vocabulary)
    for dataset in vocabulary.datasets:
        lone = [
            repr(entry.name)
            for entry, other in zip(entries, others, strict=True)
            if entry.dataset == dataset and other is None
        ]
        if lone and dataset in flipped:
            listed = ", ".join(lone[:20]) + (", ..." if len(lone) > 20 else "")
            said.append(
                f"{dataset}: flips mix the sides of {listed}, because there is no class of the "
                f"other side for mirrored images; turn flips off with --config.data.flip=0."
            )
    return said


def _others(vocabulary: Vocabulary) -> list[int | None]:
    """The class of the other side for each class: itself without a side, None if it is missing."""
    entries = vocabulary.objects + vocabulary.parts
    words = _spelled_out([_words(e.name) for e in entries], vocabulary.groups)
    known: dict[tuple[str, tuple[str, ...]], int] = {}
    for index, key in enumerate(zip(vocabulary.groups, words, strict=True)):
        known.setdefault(key, index)
    found: list[int | None] = []
    for index, (group, own) in enumerate(zip(vocabulary.groups, words, strict=True)):
        sides = set(own) & set(_OTHER_SIDE)
        other = tuple(_OTHER_SIDE.get(word, word) for word in own)
        # A name of both sides, such as "left or right", stays true.
        missing = None if len(sides) == 1 else index
        found.append(known.get((group, other), missing) if sides else index)
    return found


def _spelled_out(
    words: Sequence[tuple[str, ...]], groups: Sequence[Hashable]
) -> list[tuple[str, ...]]:
    """Words of each name, L and R as sides where both exist.

    A set of letters ("letter a", "letter l", ...) has other letters in the same place.
    """

    def place(index: int, at: int) -> tuple:
        own = words[index]
        return groups[index], own[:at], own[at + 1 :]

    letters: dict[tuple, set[str]] = {}
    for index, own in enumerate(words):
        for at, word in enumerate(own):
            if len(word) == 1 and len(own) > 1:
                letters.setdefault(place(index, at), set()).add(word)
    sides = {"l": "left", "r": "right"}
    return [
        tuple(
            sides[word] if letters.get(place(index, at)) == sides.keys() else word
            for at, word in enumerate(own)
        )
        for index, own in enumerate(words)
    ]


def _words(name: str) -> tuple[str, ...]:
    """Words of a name in lower case; `leftHand` has two."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return tuple(re.sub(r"[\W_]+", " ", spaced).casefold().split())
