"""Byte-pair encoding with CLIP's vocabulary.

A text is lower-cased and cut into words; each word starts as its UTF-8 bytes, and the pair of
neighbours that stands first in the list of merges is joined until no pair is in the list.

The list, `data/clip_bpe.txt.gz`, is OpenAI's (MIT, `data/LICENSE.CLIP.txt`): the 48,894 merges
that CLIP uses. Ids: 256 bytes, the same 256 at the end of a word, then one per merge.
"""

import functools
import gzip
import itertools
import re
import unicodedata
from importlib import resources

_WORD_END = "</w>"
_NUM_MERGES = 48_894
_CONTRACTIONS = re.compile("'(?:s|t|re|ve|m|ll|d)")


class BytePairs:
    """Byte-pair encoder with a list of merges; see `load`.

    Args:
        merges: pairs of pieces in the order in which they are joined.
    """

    def __init__(self, merges: list[tuple[str, str]]):
        self._byte_names = _byte_names()
        # The order of ids: printable bytes first, as in the list that CLIP was trained with.
        pieces = sorted(self._byte_names.values())
        pieces = sorted(pieces, key=lambda name: ord(name) >= 256)
        pieces += [piece + _WORD_END for piece in pieces]
        pieces += [first + second for first, second in merges]
        self._ids = {piece: number for number, piece in enumerate(pieces)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._encode_word = functools.lru_cache(1 << 16)(self._merge)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end."""
        return [number for word in split_words(text) for number in self._encode_word(word)]

    def _merge(self, word: str) -> tuple[int, ...]:
        pieces = [self._byte_names[byte] for byte in word.encode("utf-8")]
        pieces[-1] += _WORD_END
        last = len(self._ranks)
        while len(pieces) > 1:
            pairs = list(itertools.pairwise(pieces))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, last))
            if best not in self._ranks:
                break
            joined, at = [], 0
            while at < len(pieces):
                is_best = at < len(pairs) and pairs[at] == best
                joined.append("".join(best) if is_best else pieces[at])
                at += 2 if is_best else 1
            pieces = joined
        return tuple(self._ids[piece] for piece in pieces)


@functools.cache
def load() -> BytePairs:
    """CLIP's byte pairs; read once per process."""
    file = resources.files("semsam_jax.text") / "data" / "clip_bpe.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").splitlines()
    assert len(lines) == _NUM_MERGES
    return BytePairs([tuple(line.split(" ")) for line in lines])


def split_words(text: str) -> list[str]:
    """Lower-cased words: English contractions, letters, single digits, runs of other signs."""
    text = text.lower()
    words, at = [], 0
    while at < len(text):
        kind = _kind(text[at])
        contraction = _CONTRACTIONS.match(text, at)
        if contraction:
            end = contraction.end()
        else:
            end = at + 1
            while kind != "digit" and end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != "space":
            words.append(text[at:end])
        at = end
    return words


@functools.lru_cache(4096)
def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    major = unicodedata.category(character)[0]
    return {"L": "letter", "N": "digit"}.get(major, "sign")


def _byte_names() -> dict[int, str]:
    """A visible character for each byte: itself, or one from 256 on for the unprintable."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable}
    return names | {byte: chr(256 + number) for number, byte in enumerate(others)}
