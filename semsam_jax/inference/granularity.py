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
    try:
        parts = level.split(",") if isinstance(level, str) else np.atleast_1d(level).tolist()
    except ValueError as error:  # lists of lists of different lengths
        raise PromptError(f"level: got {str(level)[:60]}; wanted 1 to {num_levels}.") from error
    levels = []
    for part in parts:
        try:
            number = None if isinstance(part, bool) else int(part)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number not in everything or (isinstance(part, float) and part != number):
            raise PromptError(
                f"level: got {str(part).strip()[:60]!r}; wanted 1 (coarsest) to {num_levels} "
                f"(finest), or all."
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
    if wanted is not None and not (is_finite_number(wanted) and 0 < wanted <= 1):
        raise PromptError(
            f"area: got {str(wanted)[:60]}; wanted a fraction of the image in (0, 1]."
        )


def is_finite_number(value: object) -> bool:
    """Whether a value is a number (not a truth value) that a float can hold."""
    is_number = isinstance(value, int | float | np.integer | np.floating)
    return is_number and not isinstance(value, bool) and -1e300 < value < 1e300


def levels_by_area(areas: Float[np.ndarray, " k"], wanted: float) -> list[int]:
    """Indices of the masks, the one whose area fraction is nearest to the wanted one first.

    Nearness is by ratio, so half and double are equally far; an empty mask comes last.
    """
    with np.errstate(divide="ignore"):
        distance = np.abs(np.log(np.asarray(areas, np.float64)) - math.log(wanted))
    return np.argsort(distance, kind="stable").tolist()
