"""Levels 1 (coarsest) to 6 (finest): names for the tokens of a prompt.

Which token a level means is a property of a checkpoint (`meta["level_order"]`); released
weights use tokens 3, 2, 0, 4, 1, 5 (docs/reference.md, section 10).
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from semsam_jax.core.errors import CheckpointError, PromptError

Level = int | str | Sequence[int] | np.ndarray | None


def parse_levels(level: Level, num_levels: int) -> tuple[int, ...]:
    """Returns the levels that a user asks for, in the order given.

    Args:
        level: a number, `"all"` or None for all, a string such as `"1,3"`, or a sequence.
        num_levels: tokens per prompt of the model.

    Raises:
        PromptError: nothing asked for, or a level outside 1..num_levels.
    """
    everything = tuple(range(1, num_levels + 1))
    if level is None or (isinstance(level, str) and level.strip().lower() == "all"):
        return everything
    parts: Sequence = level.split(",") if isinstance(level, str) else np.atleast_1d(level).tolist()
    levels = []
    for part in parts:
        try:
            number = int(part)
        except ValueError:
            number = None
        if number not in everything or (isinstance(part, float) and part != number):
            raise PromptError(
                f"level: got {str(part).strip()!r}; wanted 1 (coarsest) to {num_levels} (finest), "
                f"or all."
            )
        levels.append(number)
    if not levels:
        raise PromptError(f"level: nothing asked for; wanted 1 to {num_levels}, or all.")
    return tuple(dict.fromkeys(levels))


def tokens_of_levels(levels: Sequence[int], level_order: Sequence[int]) -> tuple[int, ...]:
    """Token index of each level."""
    return tuple(int(level_order[level - 1]) for level in levels)


def check_level_order(level_order: Sequence[int], num_tokens: int) -> tuple[int, ...]:
    """Returns the order as ints; CheckpointError unless it is a permutation of the tokens."""
    order = tuple(int(token) for token in level_order)
    if sorted(order) != list(range(num_tokens)):
        raise CheckpointError(
            f"meta.level_order: got {list(order)}; wanted each of the {num_tokens} tokens once."
        )
    return order


def check_area(wanted: float | None) -> None:
    """Raises PromptError for an area that is no fraction of the image; None is none wanted."""
    if wanted is not None and not (math.isfinite(wanted) and 0 < wanted <= 1):
        raise PromptError(f"area: got {wanted}; wanted a fraction of the image in (0, 1].")


def level_by_area(areas: Float[np.ndarray, " k"], wanted: float) -> int:
    """Returns the index of the mask whose area fraction is nearest to the wanted one.

    Nearness is by ratio, so half and double are equally far.
    """
    return int(np.argmin(np.abs(np.log(np.maximum(areas, 1e-9)) - math.log(wanted))))
