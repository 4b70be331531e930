"""Decodes the prompts of one image, in chunks of few distinct sizes."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from semsam_jax.core.errors import CheckpointError
from semsam_jax.core.structs import Predictions, Prompts, Pyramid
from semsam_jax.inference.labels import LabelSet
from semsam_jax.inference.loading import LoadedModel, low_res_logits
from semsam_jax.inference.preprocess import Frame
from semsam_jax.inference.requests import CheckedRequest

PROMPT_CHUNK = 64
LOGITS_CHUNK = 16


def prompt_arrays(
    checked: Sequence[CheckedRequest], frame: Frame
) -> tuple[Float[np.ndarray, "p 4"], Int[np.ndarray, " p"]]:
    """Boxes (cxcywh, fractions of the canvas) and type indices of all prompts, in order."""
    boxes, types = [], []
    for check in checked:
        boxes += [frame.click_boxes(check.points), frame.box_prompts(check.boxes)]
        types += [0] * len(check.points) + [frame.box_type()] * len(check.boxes)
    return np.concatenate(boxes), np.array(types, np.int32)


def decode_prompts(
    model: LoadedModel,
    pyramid: Pyramid,
    boxes: Float[np.ndarray, "p 4"],
    types: Int[np.ndarray, " p"],
    names: LabelSet | None,
    isolate: bool,
    granularity: Float[np.ndarray, "p m"] | None = None,
) -> Predictions:
    """Decodes any number of prompts of one image in chunks; NumPy arrays [p, k + m, ...].

    Isolated prompts are padded to a power of two, so that few programs are compiled;
    prompts that see each other go in one call, exactly as many as they are.
    """
    num = len(boxes)
    step = min(PROMPT_CHUNK, 1 << (num - 1).bit_length()) if isolate else num
    text = None if names is None or names.is_empty else names.table
    parts = []
    for start in range(0, num, step):
        rows = np.arange(start, start + step)
        valid = rows < num
        rows = np.minimum(rows, num - 1)
        prompts = Prompts(boxes=boxes[rows][None], type_index=types[rows][None], valid=valid[None])
        asked = None if granularity is None else granularity[rows][None]
        found = model.decode(pyramid, prompts, text, isolate, asked)
        parts.append(jax.tree.map(lambda x: np.asarray(x)[0][valid], found))  # noqa: B023
    answer = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    check_finite(answer.pred_ious)
    return answer


def asked_of_prompts(
    model: LoadedModel, asked: Sequence[Sequence[float] | None], sizes: Sequence[int]
) -> Float[np.ndarray, "p m"] | None:
    """Granularities that the token of a model is asked for; None if there are none, or no token.

    Args:
        model: the model.
        asked: of each request, or None.
        sizes: number of prompts of each request.

    Returns:
        One row for each prompt, filled up to a power of two with its last value.
    """
    count = max((len(values) for values in asked if values), default=0)
    if not count or not model.has_granularity_token:
        return None
    count = 1 << (count - 1).bit_length()
    rows = [
        np.pad(values or (1.0,), (0, count - len(values or (1.0,))), "edge") for values in asked
    ]
    return np.repeat(np.asarray(rows, np.float32), sizes, axis=0)


def check_finite(pred_ious: Float[np.ndarray, "*p"]) -> None:
    """Raises CheckpointError if the network's answer is NaN or infinite."""
    if not np.isfinite(pred_ious).all():
        raise CheckpointError(
            "the network returned NaN or infinity; its weights are damaged, or overflow in "
            "bfloat16: load it with float32."
        )


def prompt_logits(
    mask_features: Float[Array, "h w d"], found: Predictions, sizes: list[int]
) -> Iterator[Float[np.ndarray, "q k h w"]]:
    """Mask logits at stride 4 of each request's prompts, `sizes` of them.

    Requests share a matrix product, which reads the features once; it is padded to a power of two.
    """
    k, start = found.mask_embed.shape[1], 0
    for group in _groups(sizes, LOGITS_CHUNK):
        num = sum(group)
        count = 1 << (num - 1).bit_length()

        def padded(x: np.ndarray | None) -> Array | None:
            if x is None:
                return None
            rows = np.zeros((count, *x.shape[1:]), x.dtype)  # noqa: B023
            rows[:num] = x[start : start + num]  # noqa: B023
            return jnp.asarray(rows.reshape(-1, x.shape[-1]))

        embed, limits = padded(found.mask_embed), padded(found.mask_limits)
        flat = low_res_logits(embed, mask_features, limits)
        logits = np.asarray(flat).reshape(count, k, *flat.shape[1:])[:num]
        yield from np.split(logits, np.cumsum(group)[:-1])
        start += num


def _groups(sizes: list[int], limit: int) -> list[list[int]]:
    """Neighbours whose sum stays within the limit; a larger one stays alone."""
    groups: list[list[int]] = []
    for size in sizes:
        if groups and sum(groups[-1]) + size <= limit:
            groups[-1].append(size)
        else:
            groups.append([size])
    return groups
