"""Levels 1 (coarsest) to 6 (finest), and the continuum from 0 (finest) to 1 (the whole).

Which token a level means is a property of a checkpoint (`meta["level_order"]`); released
weights use tokens 3, 2, 0, 4, 1, 5 (docs/reference.md, section 10). So is the mean size of the
masks of a level (`meta["level_sizes"]`, written by `calibrate`), which gives every level its place
on the continuum:

    g(l) = (s_l - s_k) / (s_1 - s_k),   s_l the mean square root of the area of level l

A granularity between two levels is answered by the blend of their mask logits, in proportion.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from semsam_jax.core.errors import CheckpointError, PromptError

Level = int | str | Sequence[int] | np.ndarray | None
Granularity = float | int | Sequence[float | int] | np.ndarray | None

_MAX_GRANULARITIES = 101
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class GranularityScale:
    """Where the levels of a checkpoint lie between the finest part, 0, and the whole, 1.

    Attributes:
        stops: granularity of level 1..k: 1 for level 1, 0 for level k, never rising between.
        is_calibrated: whether they were measured; if not, levels lie evenly.
    """

    stops: tuple[float, ...]
    is_calibrated: bool

    def level(self, granularity: float) -> float:
        """The real-valued level of a granularity, k for 0 and 1 for 1."""
        count = len(self.stops)
        place = np.interp(granularity, self.stops[::-1], np.arange(count))
        return count - float(place)

    def weights(self, granularity: float) -> Float[np.ndarray, " k"]:
        """Share of level 1..k in the answer to a granularity; at most two are not 0."""
        level = self.level(granularity)
        return np.maximum(0.0, 1.0 - np.abs(np.arange(1, len(self.stops) + 1) - level))

    def nearest(self, granularity: float) -> int:
        """The level with the largest share, the coarser one of two equal ones."""
        return int(self.weights(granularity).argmax()) + 1


def granularity_scale(meta: Mapping, num_levels: int) -> GranularityScale:
    """The scale of a checkpoint, even steps if it was never calibrated.

    Raises:
        CheckpointError: what it stores are not the sizes of its levels.
    """
    even = tuple(np.linspace(1.0, 0.0, num_levels).tolist())
    stored = meta.get("level_sizes")
    if stored is None:
        return GranularityScale(even, is_calibrated=False)
    is_list = isinstance(stored, list | tuple) and len(stored) == num_levels
    if not is_list or not all(is_finite_number(size) and 0 <= size <= 1 for size in stored):
        raise CheckpointError(
            f"meta.level_sizes: got {str(stored)[:60]}; expected {num_levels} numbers in 0..1, the "
            f"mean size of each level: run `semsam calibrate` on this checkpoint."
        )
    sizes = np.minimum.accumulate(np.asarray(stored, np.float64))
    span = sizes[0] - sizes[-1]
    if span <= 0:  # all levels are equally large: their order is all that is known
        return GranularityScale(even, is_calibrated=False)
    return GranularityScale(tuple(((sizes - sizes[-1]) / span).tolist()), is_calibrated=True)


def parse_granularity(
    granularity: object, level: object = None, area: object = None
) -> tuple[float, ...] | None:
    """Returns the granularities that a user asks for, in the order given; None for none.

    Args:
        granularity: 0 (the finest part) to 1 (the whole), several of them, or None.
        level: must be None or all where a granularity is given.
        area: must be None where a granularity is given.

    Raises:
        PromptError: not a number in 0..1, or a level or an area is asked for as well.
    """
    if granularity is None:
        return None
    try:
        values = np.atleast_1d(as_array(granularity))
    except ValueError as error:  # lists of lists of different lengths
        raise _no_granularity(granularity) from error
    if values.ndim != 1 or not 1 <= len(values) <= _MAX_GRANULARITIES:
        raise _no_granularity(granularity)
    for value in values.tolist():
        if not is_finite_number(value) or not 0 <= value <= 1:
            raise _no_granularity(value)
    is_all = level is None or (isinstance(level, str) and level.strip().lower() == "all")
    for name, is_given in (("level", not is_all), ("area", area is not None)):
        if is_given:
            raise PromptError(f"granularity: got it together with {name}; give one of them.")
    return tuple(float(value) for value in values)


def _no_granularity(value: object) -> PromptError:
    return PromptError(
        f"granularity: got {str(value)[:60]}; expected a number from 0 (the finest part) to 1 (the "
        f"whole), or a list of at most {_MAX_GRANULARITIES}."
    )


def token_weights(
    scale: GranularityScale, granularities: Sequence[float], level_order: Sequence[int]
) -> Float[np.ndarray, "g k"]:
    """Share of each token in the answer to each granularity, float32."""
    weights = np.zeros((len(granularities), len(level_order)), np.float32)
    for row, value in zip(weights, granularities, strict=True):
        row[list(level_order)] = scale.weights(value)
    return weights


def parse_levels(level: Level, num_levels: int, area: float | None = None) -> tuple[int, ...]:
    """Returns the levels that a user asks for, in the order given.

    Args:
        level: a number, `"all"` or None for all, a string such as `"1,3"`, or a sequence.
        num_levels: tokens per prompt of the model.
        area: the area that chooses among these levels; None for no choice.

    Raises:
        PromptError: nothing asked for, a level outside 1..num_levels, or an area that has only one
            level to choose from.
    """
    everything = tuple(range(1, num_levels + 1))
    if level is None or (isinstance(level, str) and level.strip().lower() == "all"):
        return everything
    try:
        parts = (
            level.split(",") if isinstance(level, str) else np.atleast_1d(as_array(level)).tolist()
        )
    except ValueError as error:  # lists of lists of different lengths
        raise PromptError(f"level: got {str(level)[:60]}; expected 1 to {num_levels}.") from error
    levels = []
    for part in parts:
        try:
            number = None if isinstance(part, bool) else int(part)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number not in everything or (isinstance(part, float) and part != number):
            raise PromptError(
                f"level: got {str(part).strip()[:60]!r}; expected 1 (coarsest) to {num_levels} "
                f"(finest), or all."
            )
        levels.append(number)
    if not levels:
        raise PromptError(f"level: nothing asked for; expected 1 to {num_levels}, or all.")
    if area is not None and len(set(levels)) == 1:
        raise PromptError(f"area: got it together with level {levels[0]}; give one of them.")
    return tuple(dict.fromkeys(levels))


def tokens_of_levels(levels: Sequence[int], level_order: Sequence[int]) -> tuple[int, ...]:
    """Token index of each level."""
    return tuple(int(level_order[level - 1]) for level in levels)


def check_level_order(level_order: Sequence[int], num_tokens: int) -> tuple[int, ...]:
    """Returns the order as ints; CheckpointError unless it is a permutation of the tokens."""
    try:
        order = tuple(int(token) for token in level_order)
    except (TypeError, ValueError):
        order = ()
    if sorted(order) != list(range(num_tokens)):
        shown = list(order) or str(level_order)[:60]
        raise CheckpointError(
            f"meta.level_order: got {shown}; expected each of the {num_tokens} tokens once."
        )
    return order


def check_area(wanted: float | None) -> None:
    """Raises PromptError for an area that is no fraction of the image; None is none wanted."""
    if wanted is not None and not (is_finite_number(wanted) and 0 < wanted <= 1):
        raise PromptError(
            f"area: got {str(wanted)[:60]}; expected a fraction of the image in (0, 1]."
        )


def as_array(values: object, dtype: type | None = None) -> np.ndarray:
    """Returns `np.asarray(values, dtype)`; ValueError for whatever the conversion raises.

    A tensor that requires a gradient raises RuntimeError, an image that is cut short OSError.
    """
    try:
        return np.asarray(values, dtype)
    except Exception as error:
        raise ValueError(f"{type(values).__name__} is no array: {error}") from error


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
