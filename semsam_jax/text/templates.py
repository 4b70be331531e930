"""Prompt templates of class names: a random one in training, all of them in evaluation.

Source: docs/reference.md, section 6. The 81 templates are in `templates.txt`, in the reference's
order.
"""

import functools
from collections.abc import Callable, Sequence
from importlib import resources

import numpy as np

from semsam_jax.text.tokenizer import Tokenizer

_ENDINGS = ("-other", "-merged", "-stuff")


@functools.cache
def load_templates() -> tuple[str, ...]:
    """The 81 templates; `{}` stands for the class name."""
    text = (resources.files("semsam_jax.text") / "templates.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)


def strip_endings(name: str) -> str:
    """Removes COCO's `-other`, `-merged` and `-stuff` from a class name."""
    for ending in _ENDINGS:
        name = name.replace(ending, "")
    return name


def training_prompt(name: str, template_index: int) -> str:
    """One training sentence: endings and commas are removed, `+` becomes a space."""
    cleaned = strip_endings(name).replace(",", "").replace("+", " ")
    return load_templates()[template_index].format(cleaned)


def training_prompts(names: Sequence[str], rng: np.random.Generator) -> list[str]:
    """One sentence per name, each with a template drawn at random."""
    drawn = rng.integers(len(load_templates()), size=len(names))
    return [training_prompt(name, int(i)) for name, i in zip(names, drawn, strict=True)]


def evaluation_prompts(name: str) -> list[str]:
    """All 81 sentences of one name; only the endings are removed from it."""
    cleaned = strip_endings(name)
    return [template.format(cleaned) for template in load_templates()]


def embed_names(
    encode: Callable[[np.ndarray], np.ndarray],
    names: Sequence[str],
    tokenizer: Tokenizer,
    *,
    names_per_call: int = 8,
) -> np.ndarray:
    """Evaluation embeddings: the normalised mean of the 81 unit vectors of each name.

    Args:
        encode: int32 [n, context] ids -> [n, d] unit vectors, such as a jitted
            `SemanticSAM.encode_text`. It always sees the same n.
        names: class names.
        tokenizer: makes the ids.
        names_per_call: names encoded at once; memory grows with 81 times it.

    Returns:
        float32 [len(names), d], rows of length one.
    """
    rows = []
    for start in range(0, len(names), names_per_call):
        group = list(names[start : start + names_per_call])
        filled = group + group[:1] * (names_per_call - len(group))
        ids = tokenizer([text for name in filled for text in evaluation_prompts(name)])
        vectors = np.asarray(encode(ids), np.float32)
        vectors = vectors.reshape(names_per_call, len(load_templates()), -1)
        rows.append(unit(vectors[: len(group)].mean(1)))
    return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    """Normalises rows to unit length, float32; rows of zeros stay zero."""
    rows = np.asarray(rows, np.float32)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, 1)
