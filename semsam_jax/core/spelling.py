"""When two spellings are one class name."""

import re


def spelling_key(name: str) -> str:
    """A class name without what does not tell names apart: case, spaces, and the signs _ - and '.

    Text embeddings are looked up, and the classes of a dataset compared, by this key.
    """
    return re.sub(r"[\s_'-]+", "", name).casefold()
