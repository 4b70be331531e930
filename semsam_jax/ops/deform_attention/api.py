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
    """Chooses an implementation for the kind of device and the sizes.

    `corner_gather` on a CPU, because its working set stays in the cache; `matmul` on a TPU, where
    gathers are slow; `cell_gather`, which issues the fewest gathers, on a GPU and on a TPU whose
    vector memory cannot hold a head's table.
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
    at (0.5 / W, 0.5 / H). Pixels outside a level count as zero; infinite locations lie outside. A
    NaN location or weight makes only the output of its own query and head NaN.

    Args:
        value: features of all levels, concatenated row by row in the order of
            `spatial_shapes`, for each of h heads.
        spatial_shapes: (H, W) of each of the L levels.
        sampling_locations: (x, y) of the P samples on each level, as fractions of it.
        attention_weights: weight of each sample.
        implementation: a key of `IMPLEMENTATIONS`, or None to choose with
            `pick_implementation`.

    Returns:
        The outputs of the heads, concatenated, in the dtype of `value`.

    Raises:
        ShapeError: the levels do not add up to the s rows of `value`, or the arguments disagree
            about the number of levels.
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
