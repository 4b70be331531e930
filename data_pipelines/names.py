"""What the spelling of class names means for training."""

import re
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Int64


def first_spellings(names: Sequence[str], groups: Sequence[Hashable]) -> Int64[np.ndarray, " v"]:
    """Index of the first name of the same group that is spelled alike, mostly its own.

    Case, spaces, underscores, hyphens and apostrophes do not count, as in the lookup of text
    embeddings (`TextEmbeddings.find`): no model can tell such names apart.

    Args:
        names: class names.
        groups: of each name; names of different groups never meet (`Vocabulary.groups`).
    """
    first: dict[tuple[Hashable, str], int] = {}
    return np.array(
        [
            first.setdefault((group, re.sub(r"[\s_'-]+", "", name).casefold()), index)
            for index, (name, group) in enumerate(zip(names, groups, strict=True))
        ],
        np.int64,
    )
