"""CLIP's byte-pair tokens in the original's padding.

Rows are padded with the end token, as the original does (docs/reference.md, section 6).
"""

from collections.abc import Sequence

import numpy as np

from semsam_jax.text import bpe

START_ID = 49406
END_ID = 49407


class Tokenizer:
    """Turns texts into rows of `context_length` ids.

    Attributes:
        context_length: ids in a row, with the start and the end.
    """

    def __init__(self, context_length: int = 18):
        if context_length < 3:
            raise ValueError(
                f"Tokenizer.context_length: got {context_length}, expected at least 3 "
                f"(start, one token, end)."
            )
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Tokenises texts.

        Args:
            texts: any number of texts; case and runs of white space do not matter.

        Returns:
            int32 [len(texts), context_length]: start, tokens, end, and the end repeated.
            A text that is too long loses its last tokens, never the end.
        """
        ids = np.full((len(texts), self.context_length), END_ID, np.int32)
        ids[:, 0] = START_ID
        for row, text in zip(ids, texts, strict=True):
            tokens = bpe.load().encode(text)[: self.context_length - 2]
            row[1 : 1 + len(tokens)] = tokens
        return ids
