"""The public function: checks shapes and picks an implementation."""

from jaxtyping import Array, Float

from semsam_jax.core.backend import target_backend
from semsam_jax.core.errors import ConfigError, ShapeError
from semsam_jax.ops.deform_attention.cell_gather import cell_gather
from semsam_jax.ops.deform_attention.corner_gather import corner_gather
from semsam_jax.ops.deform_attention.matmul import matmul, matmul_fits
from semsam_jax.ops.deform_attention.reference import reference

IMPLEMENTATIONS = {
    "reference": reference,
    "corner_gather": corner_gather,
    "cell_gather": cell_gather,
    "matmul": matmul,
}


def pick_implementation(
    value: Float[Array, "b s h e"],
    spatial_shapes: tuple[tuple[int, int], ...],
    attention_weights: Float[Array, "b q h L P"],
) -> str:
    """Returns the implementation that suits the kind of device and the sizes.

    `corner_gather` on a CPU: it reads a little at a time through the cache. `matmul` on a TPU,
    which is slow at gathers; where a head's table does not fit its vector memory, and on a GPU,
    `cell_gather`, which issues the fewest gathers.
    """
    backend = target_backend()
    if backend == "cpu":
        return "corner_gather"
    q, points = attention_weights.shape[1], attention_weights.shape[-1]
    if backend == "tpu" and matmul_fits(value, spatial_shapes, q, points):
        return "matmul"
    return "cell_gather"


def deform_attention(
    value: Float[Array, "b s h e"],
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Float[Array, "b q h L P 2"],
    attention_weights: Float[Array, "b q h L P"],
    *,
    implementation: str | None = None,
) -> Float[Array, "b q h*e"]:
    """Weighted sum of bilinear samples of a feature pyramid, per query and head.

    A location of (0, 0) is the top-left corner of the top-left pixel, whose centre is
    at (0.5 / W, 0.5 / H). Pixels outside a level count as zero, and infinity lies outside. A
    location or weight that is NaN makes the sum of its query and head NaN, and no other.

    Args:
        value: features of all levels, concatenated row by row in the order of
            `spatial_shapes`, for each of h heads.
        spatial_shapes: (H, W) of each of the L levels.
        sampling_locations: (x, y) of the P samples on each level, as fractions of it.
        attention_weights: weight of each sample.
        implementation: a key of `IMPLEMENTATIONS`, or None for what `pick_implementation` says.

    Returns:
        The heads' sums side by side, in the dtype of `value`.

    Raises:
        ShapeError: the levels do not cover `value`, or L disagrees.
        ConfigError: unknown implementation.

    Source: Deformable DETR (arXiv 2010.04159) section 4.1; docs/reference.md, section 4.
    """
    num_pixels = sum(height * width for height, width in spatial_shapes)
    if value.shape[1] != num_pixels or sampling_locations.shape[3] != len(spatial_shapes):
        raise ShapeError(
            f"deform_attention: value has {value.shape[1]} rows and sampling_locations "
            f"{sampling_locations.shape[3]} levels, but spatial_shapes {spatial_shapes} has "
            f"{num_pixels} pixels on {len(spatial_shapes)} levels; pass the shapes of the "
            "levels that were concatenated."
        )
    name = implementation or pick_implementation(value, spatial_shapes, attention_weights)
    if name not in IMPLEMENTATIONS:
        raise ConfigError(
            f"deform_attention: unknown implementation {name!r}; use None or one of "
            f"{', '.join(IMPLEMENTATIONS)}."
        )
    run = IMPLEMENTATIONS[name]
    return run(value, tuple(spatial_shapes), sampling_locations, attention_weights)
