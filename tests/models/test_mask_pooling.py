"""What lies under a mask, worked by hand; and the heads that read it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.errors import ShapeError
from semsam_jax.core.structs import Pyramid, TextTable
from semsam_jax.models.heads import Heads
from semsam_jax.models.mask_pooling import pool_under_masks
from semsam_jax.models.presets import PRESETS, DecoderConfig

SIZES = DecoderConfig(dim=8, text_dim=6, part_owner=True, pooled_names=True)


def normalised(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_a_map_is_averaged_over_the_pixels_of_a_mask():
    """A mask of four pixels of the left cell and two of the right one: 4/6 and 2/6 of each."""
    mask = np.full((1, 1, 2, 4), -40.0, np.float32)
    mask[0, 0, :, :2], mask[0, 0, 0, 2:] = 40.0, 40.0
    left, right = np.float32([3.0, 1.0, -1.0]), np.float32([0.0, 6.0, 10.0])
    fine = np.stack([left, right])[None, None]
    coarse = np.float32([[[[1.0, 5.0]]]])
    got = pool_under_masks(jnp.asarray(mask), [jnp.asarray(fine), jnp.asarray(coarse)])
    want = np.concatenate([normalised((4 * left + 2 * right) / 6), normalised(coarse[0, 0, 0])])
    np.testing.assert_allclose(got[0, 0], want, rtol=1e-5)


def test_an_uncertain_pixel_counts_by_its_probability_and_an_empty_mask_is_finite():
    """A pixel of probability 3/4 and one of 1/4."""
    left, right = np.float32([4.0, 0.0, 1.0]), np.float32([0.0, 8.0, 1.0])
    features = jnp.asarray(np.stack([left, right])[None, None])
    logits = jnp.log(jnp.asarray([[[[3.0, 1.0 / 3.0]]]]))
    got = pool_under_masks(logits, [features])
    np.testing.assert_allclose(got[0, 0], normalised(0.75 * left + 0.25 * right), rtol=1e-4)
    assert np.isfinite(pool_under_masks(jnp.full((1, 1, 1, 2), -200.0), [features])).all()


def test_masks_get_no_gradient_and_maps_do():
    key = jax.random.key(0)
    logits = jax.random.normal(key, (1, 2, 4, 4))
    features = jax.random.normal(jax.random.key(1), (1, 2, 2, 3))

    def loss(logits, features):
        return jnp.sum(jnp.sin(pool_under_masks(logits, [features])))

    of_masks, of_maps = jax.grad(loss, (0, 1))(logits, features)
    np.testing.assert_array_equal(of_masks, 0)
    assert np.abs(of_maps).max() > 0


def test_a_map_that_does_not_divide_the_masks_is_an_error():
    with pytest.raises(ShapeError, match="4 x 4 do not divide into the 3 x 2"):
        pool_under_masks(jnp.zeros((1, 1, 4, 4)), [jnp.zeros((1, 3, 2, 5))])


@pytest.fixture(scope="module")
def heads():
    """Heads, random parameters, tokens of two layers, names and an encoded image."""
    module = Heads(SIZES, mask_dim=4, pooled_dim=5)
    keys = jax.random.split(jax.random.key(0), 6)
    content, boxes = jax.random.normal(keys[0], (2, 1, 3, 8)), jnp.full((2, 1, 3, 4), 0.5)
    rows = jax.random.normal(keys[1], (5, 6))
    text = TextTable(objects=rows[:3], parts=rows[3:])
    pyramid = Pyramid(
        levels=(),
        mask_features=jax.random.normal(keys[2], (1, 8, 8, 4)),
        name_maps=(
            jax.random.normal(keys[3], (1, 2, 2, 3)),
            jax.random.normal(keys[4], (1, 1, 1, 2)),
        ),
    )

    def touch(m):
        m.refine_boxes(content, boxes)
        return m.predict(content, boxes, text, pyramid, has_ious=True)

    return module, module.init(keys[5], method=touch)["params"], (content, boxes, text, pyramid)


def test_at_the_start_names_are_those_of_the_token_alone(heads):
    module, params, inputs = heads
    plain = Heads(dataclasses.replace(SIZES, pooled_names=False), mask_dim=4)
    own = {k: v for k, v in params.items() if not k.endswith("_pooled_embed")}
    assert set(params) - set(own) == {f"{k}_pooled_embed" for k in ("object", "part", "owner")}
    got = module.apply({"params": params}, *inputs, has_ious=True, method="predict")
    want = plain.apply({"params": own}, *inputs, has_ious=True, method="predict")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_each_head_reads_what_lies_under_the_mask_within_its_limits(heads):
    """The cosine of the sum of both projections, by plain NumPy, in every layer."""
    module, params, (content, boxes, text, pyramid) = heads
    rng = np.random.default_rng(0)
    params = {
        k: jnp.asarray(rng.normal(size=v.shape), jnp.float32) if k.endswith("_pooled_embed") else v
        for k, v in params.items()
    }
    limits = jnp.broadcast_to(jnp.asarray([0.0, 0.0, 0.5, 1.0]), (1, 3, 4))
    got = module.apply(
        {"params": params}, content, boxes, text, pyramid, limits, has_ious=True, method="predict"
    )
    embed = np.asarray(got.mask_embed)
    logits = np.einsum("lbqd,bhwd->lbqhw", embed, pyramid.mask_features)
    weights = 1 / (1 + np.exp(-logits))
    weights[..., 4:] = 0.0  # beyond the limits
    pooled = []
    for features in map(np.asarray, pyramid.name_maps):
        side = 8 // features.shape[1]
        every = features.repeat(side, 1).repeat(side, 2)
        mean = np.einsum("lbqhw,bhwc->lbqc", weights, every)
        pooled.append(normalised(mean / weights.sum((-2, -1))[..., None]))
    pooled = np.concatenate(pooled, -1)
    for kind, names, found in (
        ("object", text.objects, got.object_logits),
        ("part", text.parts, got.part_logits),
        ("owner", text.objects, got.owner_logits),
    ):
        x = np.asarray(content) @ params[f"{kind}_embed"] + pooled @ params[f"{kind}_pooled_embed"]
        cosine = x / np.linalg.norm(x, axis=-1, keepdims=True) @ np.asarray(names).T
        np.testing.assert_allclose(found, np.exp(2.6593) * cosine, rtol=2e-3, atol=2e-3)
    assert got.mask_limits.shape == (2, 1, 3, 4)


def test_only_lite_looks_under_masks():
    assert [name for name, sizes in PRESETS.items() if sizes.decoder.pooled_names] == ["lite"]
    assert PRESETS["lite"].pooled_dim == 120 + 32 + 352 + 32
    assert PRESETS["tiny"].pooled_dim == 0
