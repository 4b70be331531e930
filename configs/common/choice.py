"""The part after the colon of a recipe: `PRESET`, or `PRESET,rows=512,share=0.03`."""

from ml_collections import ConfigDict

ROWS = 64
"""Rows a step of the paper, for which its rate of 1e-4 is meant."""


def parse(choice: str, **defaults: float) -> tuple[str, dict[str, float]]:
    """Splits a choice into its name and its numbers.

    Args:
        choice: name, then NAME=NUMBER, separated by commas.
        **defaults: the numbers that may be given, with their defaults; whole ones where those
            are whole.

    Raises:
        ValueError: an unknown option, or a value that is not such a number.
    """
    name, *given = choice.split(",")
    numbers = dict(defaults)
    for text in given:
        key, _, value = text.partition("=")
        is_whole = isinstance(defaults.get(key), int)
        digits = value if is_whole else value.replace(".", "", 1)
        if key not in defaults or not digits.isdecimal() or not float(value) > 0:
            raise ValueError(
                f"{choice}: {text!r} is not understood; expected NAME=NUMBER above 0, NAME out of "
                f"{', '.join(defaults)}{', a whole number' if is_whole else ''}."
            )
        numbers[key] = float(value)
    return name, numbers


def set_rows(config: ConfigDict, rows: int) -> ConfigDict:
    """Changes the rows per step of a recipe made for 64, and everything that depends on them.

    The number of images seen stays the same, also between saves and evaluations, and each stream
    keeps its share. The learning rate scales with the square root of the rows, as the noise of
    Adam's gradients does (arXiv 2205.10287). Above 64 rows the warm-up is 4 steps per row, and
    parameters are averaged over 2.56 million rows; up to 64 both are the recipe's, which like the
    paper does not average.

    Raises:
        ValueError: the rows cannot be divided among the streams.
    """
    data = config.data
    before = data.interactive_batch + data.generic_batch
    interactive = rows * data.interactive_batch / before
    if interactive != int(interactive):
        raise ValueError(
            f"rows={rows}: the streams have {data.interactive_batch} + {data.generic_batch} rows; "
            f"choose a number that divides in this ratio."
        )
    data.interactive_batch, data.generic_batch = int(interactive), rows - int(interactive)
    for key in ("steps", "save_every", "eval_every"):
        config[key] = round(config[key] * before / rows)
    config.optimizer.learning_rate = config.optimizer.learning_rate * (rows / before) ** 0.5
    if rows > ROWS:
        config.optimizer.warmup_steps = 4 * rows
        config.optimizer.ema = 1.0 - rows / 2_560_000
    return config
