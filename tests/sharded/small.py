"""A model small enough to be compiled for several meshes, and a batch for it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from data_pipelines.schema import BatchShape
from semsam_jax.core.structs import Batch, StreamBatch
from semsam_jax.criterion.total import CriterionConfig
from semsam_jax.models.presets import (
    DecoderConfig,
    ModelConfig,
    PixelDecoderConfig,
    SwinConfig,
    TextConfig,
)
from semsam_jax.models.semantic_sam import SemanticSAM, init_params
from semsam_jax.parallel.mesh import batch_sharding, replicated
from semsam_jax.train.state import TrainState, shard_state
from semsam_jax.train.step import TextInputs, TrainStep
from tests.models.random_params import random_params

ROWS = 8
NUM_OBJECTS, NUM_NAMES = 5, 8
NUM_TOKENS = 8**2 + 4**2 + 2**2 + 1  # of the pyramid, strides 8 to 64
SHAPE = BatchShape(
    image_size=64, max_instances=4, num_prompts=3, max_targets=3, vocab_size=NUM_NAMES
)
MODEL = ModelConfig(
    backbone=SwinConfig(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(2, 2, 2, 2), window_size=4),
    pixel_decoder=PixelDecoderConfig(
        dim=32, mask_dim=16, num_layers=1, num_heads=2, feedforward_dim=48, norm_groups=4
    ),
    decoder=DecoderConfig(
        dim=32,
        num_layers=1,
        num_heads=2,
        feedforward_dim=48,
        text_dim=16,
        num_queries=6,
        num_denoising=4,
    ),
    text=TextConfig(width=16, num_heads=2, num_layers=1, vocab_size=400),
)
CRITERION = CriterionConfig(num_points=32, match_points=32)


def batch() -> StreamBatch:
    """Eight interactive and eight generic rows, on the host."""
    return StreamBatch(_rows(np.random.default_rng(0)), _rows(np.random.default_rng(1)))


def text() -> TextInputs:
    """Token ids of all names; the largest id ends a name."""
    ids = np.random.default_rng(2).integers(1, 398, (NUM_NAMES, MODEL.text.context_length))
    ids[:, 5] = 399
    return TextInputs(token_ids=ids.astype(np.int32))


def params() -> dict:
    """Random parameters, on the host."""
    model = SemanticSAM(MODEL)
    return jax.device_get(random_params(lambda key: init_params(model, key), seed=3))


TX = optax.trace(decay=0.0)
"""Keeps its gradients: the optimiser's state is the gradient, and the update too."""


def make_step(mesh: Mesh, dtype=jnp.float32, remat: str = "none", **options) -> TrainStep:
    """A step whose new optimiser state is the gradient."""
    return TrainStep(
        model=SemanticSAM(MODEL, dtype=dtype, remat=remat),
        tx=TX,
        criterion=CRITERION,
        mesh=mesh,
        num_objects=NUM_OBJECTS,
        seed=0,
        **options,
    )


def on_mesh(
    mesh: Mesh, host_params: dict, has_ema: bool = False
) -> tuple[TrainState, StreamBatch, TextInputs]:
    """State, batch and text where a run would put them."""
    state = shard_state(host_params, TX, has_ema, mesh)
    return state, _put(batch(), batch_sharding(mesh)), _put(text(), replicated(mesh))


def _put(tree: object, sharding: NamedSharding) -> object:
    return jax.tree.map(lambda x: jax.device_put(x, sharding), tree)


def _rows(rng: np.random.Generator) -> Batch:
    size, n, p, t = SHAPE.image_size, SHAPE.max_instances, SHAPE.num_prompts, SHAPE.max_targets
    corners = np.sort(rng.integers(0, size, (ROWS, n, 2, 2)), axis=2)
    corners[:, :, 1] = np.minimum(corners[:, :, 1] + 12, size)
    masks = np.zeros((ROWS, n, size, size), bool)
    for row in range(ROWS):
        for index, ((x0, y0), (x1, y1)) in enumerate(corners[row]):
            masks[row, index, y0:y1, x0:x1] = True
    low, high = corners[:, :, 0] / size, corners[:, :, 1] / size
    boxes = np.concatenate([(low + high) / 2, high - low], axis=-1).astype(np.float32)
    targets = np.full((ROWS, p, t), -1, np.int32)
    targets[:, :, 0] = rng.integers(0, n, (ROWS, p))
    targets[:, 0, 1] = (targets[:, 0, 0] + 1) % n
    prompt = np.take_along_axis(boxes, targets[:, :, 0][..., None], axis=1)
    is_box = rng.random((ROWS, p)) < 0.3
    prompt[~is_box, 2:] = 6 / size
    valid = np.ones((ROWS, n), bool)
    valid[::2, -1] = False
    vocab = np.ones((ROWS, NUM_NAMES), bool)
    vocab[1::2, 0] = False
    values = {
        "image": rng.integers(0, 256, (ROWS, size, size, 3), np.uint8),
        "size_hw": np.full((ROWS, 2), (size, size - 8), np.int32),
        "mask_bits": np.packbits(masks, axis=-1),
        "boxes": boxes,
        "object_id": rng.integers(-1, NUM_OBJECTS, (ROWS, n)).astype(np.int32),
        "part_id": rng.integers(NUM_OBJECTS, NUM_NAMES, (ROWS, n)).astype(np.int32),
        "instance_valid": valid,
        "prompt_box": prompt,
        "prompt_is_box": is_box,
        "prompt_valid": np.ones((ROWS, p), bool),
        "prompt_targets": targets,
        "pseudo_targets": np.full_like(targets, -1),
        "vocab_valid": vocab,
        "vocab_owned": np.zeros((ROWS, NUM_NAMES), np.uint8),
        "has_masks": np.ones(ROWS, bool),
        "dataset": np.zeros(ROWS, np.int32),
    }
    assert {k: (v.dtype, v.shape[1:]) for k, v in values.items()} == SHAPE.spec()
    return Batch(**values)
