"""Loss points near the prompts, so that small targets are sampled.

Uniform points rarely hit a target of a few pixels, and its loss then favours an empty mask. Here a
fraction of an image's points is drawn around its prompts instead.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from semsam_jax.core.structs import Batch

RADII = (0.01, 0.03, 0.09)
"""Standard deviations of the points around a prompt's centre, fractions of the canvas."""


def draw_points(
    key: PRNGKeyArray, num_points: int, rows: Batch, share: float
) -> Float[Array, "b j 2"]:
    """Draws uniform points and moves a fraction `share` of them towards prompts.

    A moved point is normally distributed around the centre of a random valid prompt of its row.
    Points that would leave the canvas, and all points of rows without a valid prompt, are not
    moved.

    Args:
        key: random key.
        num_points: per row.
        rows: the interactive rows.
        share: probability that a point is moved, 0..1.

    Returns:
        (x, y), fractions of the canvas.
    """
    b, j = rows.prompt_valid.shape[0], num_points
    points = jax.random.uniform(key, (b, j, 2))
    if not share:
        return points
    keys = jax.random.split(jax.random.fold_in(key, 1), 4)
    has_prompts = rows.prompt_valid.any(-1, keepdims=True)
    logits = jnp.where(rows.prompt_valid | ~has_prompts, 0.0, -jnp.inf)
    prompt = jax.random.categorical(keys[0], logits[:, None], shape=(b, j))
    centre = jnp.take_along_axis(rows.prompt_box[..., :2], prompt[..., None], axis=1)
    radius = jax.random.choice(keys[1], jnp.asarray(RADII), (b, j, 1))
    near = centre + radius * jax.random.normal(keys[2], points.shape)
    is_on_canvas = ((near >= 0) & (near < 1)).all(-1, keepdims=True)
    is_moved = jax.random.uniform(keys[3], (b, j, 1)) < share
    return jnp.where(is_moved & is_on_canvas & has_prompts[..., None], near, points)
