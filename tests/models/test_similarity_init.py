"""Similarity initialization: an untrained model already masks what resembles the clicked pixel."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from semsam_jax.config import build
from semsam_jax.convert.imagenet import load_imagenet_params
from semsam_jax.core.errors import ConfigError
from semsam_jax.core.structs import Prompts
from semsam_jax.models.heads import mask_logits
from semsam_jax.models.presets import model_config
from semsam_jax.models.semantic_sam import SemanticSAM
from semsam_jax.models.similarity_init import align
from semsam_jax.train.warm_start import random_params

LITE = model_config("lite")
# Without the window, which makes every start look at the click.
CONFIG = dataclasses.replace(LITE, decoder=dataclasses.replace(LITE.decoder, mask_window=False))
MODEL = SemanticSAM(CONFIG)
IMAGE = Path(__file__).parents[2] / "data_pipelines/sample/data/coco/val2017/000000000785.jpg"
SIDE, GRID = 256, 5


@pytest.fixture(scope="module")
def random():
    return random_params(MODEL, seed=0) | {"backbone": load_imagenet_params("lite2")}


@pytest.fixture(scope="module")
def masks_of():
    image = np.asarray(Image.open(IMAGE).convert("RGB").resize((SIDE, SIDE)))[None]
    places = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID
    clicks = np.stack(np.meshgrid(places, places), -1).reshape(1, -1, 2)
    boxes = np.concatenate([clicks, np.full_like(clicks, 0.005)], -1)

    @jax.jit
    def run(params):
        def call(method, *args):
            return MODEL.apply({"params": params}, *args, method=method)

        pyramid = call("encode_image", jnp.asarray(image), jnp.array([[SIDE, SIDE]]))
        kind, valid = jnp.zeros(boxes.shape[:2], jnp.int32), jnp.ones(boxes.shape[:2], bool)
        found = call("decode_prompts", pyramid, Prompts(jnp.asarray(boxes), kind, valid))
        return mask_logits(found.mask_embed[-1], pyramid.mask_features)[0] > 0

    def masks(params):
        """Masks [click, token, y, x], and whether each holds its click."""
        found = np.asarray(run(params))
        size = found.shape[-1]
        at = (clicks[0] * size).astype(int)
        return found, found[np.arange(len(at)), :, at[:, 1], at[:, 0]]

    return masks


@pytest.mark.nightly  # compiles all of `lite`
def test_untrained_masks_lie_around_their_clicks(random, masks_of):
    found, holds_click = masks_of(align(random, CONFIG, seed=0))
    assert holds_click[:, :3].mean() > 0.9
    # From coarse to fine, and nothing like the whole image at the fine end.
    areas = found.mean((0, 2, 3))
    assert (np.diff(areas) < 0).all()
    assert areas[0] > 2 * areas[-1]
    assert 0.0 < areas[-1] < 0.2
    # The masks of one token belong to their clicks: other clicks lie in few of them.
    at = np.asarray([[(i + 0.5) / GRID * found.shape[-1] for i in range(GRID)]], int)[0]
    fine = found[:, 3][:, at][:, :, at].reshape(GRID * GRID, GRID * GRID)
    assert np.diag(fine).mean() > 3 * fine.mean()


@pytest.mark.nightly  # compiles all of `lite`
def test_random_start_knows_nothing_of_the_click(random, masks_of):
    found, _ = masks_of(random)
    at = np.asarray([[(i + 0.5) / GRID * found.shape[-1] for i in range(GRID)]], int)[0]
    token = found[:, :, at][:, :, :, at].reshape(GRID * GRID, 6, GRID * GRID)
    own = np.diagonal(token, axis1=0, axis2=2).mean()
    assert own < 1.5 * token.mean() + 0.02


def test_only_values_change_and_the_given_parameters_stay(random):
    before = jax.tree.map(np.copy, random)
    aligned = align(random, CONFIG, seed=0)
    jax.tree.map(np.testing.assert_array_equal, before, random)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), random)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), aligned) == shapes
    jax.tree.map(np.testing.assert_array_equal, aligned["backbone"], random["backbone"])


@pytest.mark.parametrize("preset", ["tiny", "swin_t", "swin_l"])
def test_other_presets_are_refused(preset):
    with pytest.raises(ConfigError, match=r"model\.init"):
        build({"model": {"preset": preset, "init": "similarity"}})
