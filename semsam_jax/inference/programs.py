"""The two programs of a model that are exported: encoding an image, and answering prompts.

    encode(params, image u8 [1,H,W,3], size_hw i32 [1,2]) -> pyramid
    decode(params, pyramid, boxes f32 [1,N,4], type_index i32 [1,N])
        -> mask_logits [1,N,k,H/4,W/4], pred_ious [1,N,k], boxes [1,N,k,4], mask_embed [1,N,k,d]

A pyramid is a dict of maps: `level0`, `level1` ... and `mask_features`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from semsam_jax.core.structs import Prompts, Pyramid
from semsam_jax.models.heads import mask_logits


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of fixed shapes.

    Attributes:
        name: of its file, without ending.
        function: `(params, *inputs) -> dict of arrays`.
        inputs: shapes and dtypes of all arguments but the parameters, by name, in order; a pyramid
            is a dict of them.
        facts: what the manifest says about it.
    """

    name: str
    function: Callable[..., Any]
    inputs: dict[str, Any]
    facts: dict[str, Any]


def shapes_of(params: Any) -> Any:
    """Shapes and dtypes of a tree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


def programs(model, canvas: tuple[int, int], prompt_counts: Sequence[int]) -> Iterator[Program]:
    """The programs of a `LoadedModel` for one canvas (height, width)."""
    height, width = canvas
    module = model.module
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
    size_hw = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    facts = {"canvas_hw": [height, width]}

    def encode(params, image, size_hw):
        pyramid = module.apply({"params": params}, image, size_hw, method="encode_image")
        levels = {f"level{i}": level for i, level in enumerate(pyramid.levels)}
        return levels | {"mask_features": pyramid.mask_features}

    def decode(params, pyramid, boxes, type_index):
        prompts = Prompts(boxes, type_index, jnp.ones(type_index.shape, bool))
        levels = tuple(pyramid[f"level{i}"] for i in range(len(pyramid) - 1))
        packed = Pyramid(levels, pyramid["mask_features"])
        answer = module.apply({"params": params}, packed, prompts, method="decode_prompts")
        limits = None if answer.mask_limits is None else answer.mask_limits[-1]
        return {
            "mask_logits": mask_logits(answer.mask_embed[-1], packed.mask_features, limits),
            "pred_ious": answer.pred_ious[-1],
            "boxes": answer.boxes[-1],
            "mask_embed": answer.mask_embed[-1],
        }

    inputs = {"image": image, "size_hw": size_hw}
    yield Program(f"encode_{height}x{width}", encode, inputs, facts)
    pyramid = jax.eval_shape(encode, shapes_of(model.params), image, size_hw)
    for count in prompt_counts:
        boxes = jax.ShapeDtypeStruct((1, count, 4), jnp.float32)
        types = jax.ShapeDtypeStruct((1, count), jnp.int32)
        name = f"decode_{height}x{width}_p{count}"
        inputs = {"pyramid": pyramid, "boxes": boxes, "type_index": types}
        yield Program(name, decode, inputs, facts | {"num_prompts": count})
