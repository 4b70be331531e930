"""Containers passed between modules; every array axis is named here.

Axis letters: `b` images, `h w` canvas pixels, `n` instances, `p` prompts, `k` tokens of
a prompt, `t` targets of a prompt (t <= k), `q` generic queries, `l` decoder layers, `v`
vocabulary (objects first, then parts), `d` channels, `j` loss points.
"""

import typing

import jax
from flax import struct

Array = jax.Array


@typing.no_type_check
@struct.dataclass
class Batch:
    """Rows of one stream, or of both; mirrors `data_pipelines.schema.BatchShape.spec`.

    Valid instances, prompts and targets come first on their axes; padding follows. Instances that
    are pseudo targets lie behind the valid ones.
    """

    image: Array  # uint8 [b,h,w,3] RGB, zero-padded right and bottom
    size_hw: Array  # int32 [b,2] valid pixels
    mask_bits: Array  # uint8 [b,n,h/s,w/(8s)] packed along x, most significant bit first
    boxes: Array  # float32 [b,n,4] cxcywh, fractions of the canvas
    object_id: Array  # int32 [b,n] in [0, num_objects), -1 none
    part_id: Array  # int32 [b,n] in [num_objects, v), -1 none
    instance_valid: Array  # bool [b,n]
    prompt_box: Array  # float32 [b,p,4] cxcywh; a click is a tiny box
    prompt_is_box: Array  # bool [b,p]
    prompt_valid: Array  # bool [b,p]
    prompt_targets: Array  # int32 [b,p,t] instance index, -1 none
    pseudo_targets: Array  # int32 [b,p,t] parts made from colours, where prompt_targets is -1
    vocab_valid: Array  # bool [b,v] classes of which every instance in the image is annotated
    vocab_owned: Array  # uint8 [b,v] for the others: 0 unknown, 1 a positive at its own instances,
    # 2 a negative at the other instances as well (`data_pipelines.schema`)
    has_masks: Array  # bool [b]
    dataset: Array  # int32 [b]


@typing.no_type_check
@struct.dataclass
class Pyramid:
    """Output of `encode_image`.

    `levels` are the refined maps, high to low resolution: strides 8, 16, 32, 64, each
    [b, ceil(h/s), ceil(w/s), d]. `mask_features` is [b, h/4, w/4, mask_dim] in float32.
    `name_maps` are the backbone's maps at strides 16 and 32 for models that average them under
    masks (`models.mask_pooling`), else empty.
    """

    levels: tuple
    mask_features: Array
    name_maps: tuple = ()


@typing.no_type_check
@struct.dataclass
class Prompts:
    """Clicks and boxes. A click is a tiny box; `type_index` selects the type embedding.

    Attributes:
        boxes: float32 [b,p,4] cxcywh, fractions of the padded canvas.
        type_index: int32 [b,p]; our own training uses 0 for clicks and 1 for boxes,
            released weights are driven with 0 for both (docs/reference.md, section 5).
        valid: bool [b,p].
    """

    boxes: Array
    type_index: Array
    valid: Array


@typing.no_type_check
@struct.dataclass
class TextTable:
    """Unit-length name embeddings, [num_objects, d] and [num_parts, d], float32."""

    objects: Array
    parts: Array


@typing.no_type_check
@struct.dataclass
class Predictions:
    """Predictions of the heads for each decoder layer; the last layer is the result.

    Leading axes are [l, b, p, k] for prompts and [l, b, q] for generic queries.

    Attributes:
        mask_embed: [..., mask_dim]; mask logits = mask_embed . mask_features.
        boxes: float32 [..., 4] cxcywh in 0..1 of the canvas.
        pred_ious: float32 [...] predicted quality of the mask (prompts only), else None.
        object_logits: float32 [..., num_objects] or None without text.
        part_logits: float32 [..., num_parts] or None without text.
        owner_logits: float32 [..., num_objects] what a part belongs to, or None without text or
            without that projection; meaningless for whole objects.
        mask_limits: float32 [..., 4] (x0, y0, x1, y1) in fractions of the canvas, outside of which
            a mask is empty; None for no limits.
    """

    mask_embed: Array
    boxes: Array
    pred_ious: Array | None = None
    object_logits: Array | None = None
    part_logits: Array | None = None
    owner_logits: Array | None = None
    mask_limits: Array | None = None


@typing.no_type_check
@struct.dataclass
class DenoisingQueries:
    """Slots of the denoising part of the generic branch (docs/reference.md, section 13), static in
    number.

    Attributes:
        instance: int32 [b,g] instance of each slot (0 where invalid).
        group: int32 [b,g] slots of one group see each other.
        valid: bool [b,g].
        num_groups: int32 [b] groups in use.
    """

    instance: Array
    group: Array
    valid: Array
    num_groups: Array


@typing.no_type_check
@struct.dataclass
class GenericPredictions:
    """Generic branch: `layers` index 0 is the prediction before the first layer.

    Attributes:
        layers: Predictions [l+1, b, q, ...].
        proposals: Predictions [b, q, ...] of the selected encoder tokens.
        denoising: Predictions [l+1, b, g, ...] or None outside training.
        denoising_queries: which instance each denoising slot belongs to, or None.
    """

    layers: Predictions
    proposals: Predictions
    denoising: Predictions | None = None
    denoising_queries: DenoisingQueries | None = None


@typing.no_type_check
@struct.dataclass
class Costs:
    """Matching costs, float32; one of the two may be None.

    Attributes:
        prompts: [b,p,k,t] of the last layer.
        queries: [b,l,q,n]; l runs over the layers [l+1] and, last, the proposals.
    """

    prompts: Array | None
    queries: Array | None


@typing.no_type_check
@struct.dataclass
class Assignment:
    """Assignments that the host solves for `Costs`.

    Attributes:
        token_of_target: int32 [b,p,t] token assigned to each target; 0 where the target
            is padding. None under the many-to-one rule, which chooses on the device.
        query_of_instance: int32 [b,l,n] query assigned to each instance, 0 at padding, -1 for
            instances left over where there are more of them than queries.
        nonfinite: int32 [rows of both streams] number of costs that were not finite: on each
            device its interactive rows, then its generic rows.
    """

    token_of_target: Array | None
    query_of_instance: Array | None
    nonfinite: Array


@typing.no_type_check
@struct.dataclass
class StreamBatch:
    """The two quotas of a global batch; one of them may be None."""

    interactive: Batch | None
    generic: Batch | None


@typing.no_type_check
@struct.dataclass
class StreamOutputs:
    """Outputs of the network for both streams; None for an absent one.

    Attributes:
        prompts: [l, b, p, k, ...], all layers.
        prompt_features: float32 [b, h/4, w/4, mask_dim] of the interactive rows.
        queries: generic predictions.
        query_features: float32 [b, h/4, w/4, mask_dim] of the generic rows.
        requested: [l, b, p, m, ...] masks for the requested granularities
            (`criterion.granularity_loss`), or None.
        touched_rows: float32 [b] of both streams, fraction of the pyramid's rows that samples of
            neighbouring encoder queries touch, averaged over layers.
    """

    prompts: Predictions | None
    prompt_features: Array | None
    queries: GenericPredictions | None
    query_features: Array | None
    touched_rows: Array | None = None
    requested: Predictions | None = None
