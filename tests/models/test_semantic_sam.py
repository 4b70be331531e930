"""The whole model: isolation of prompts and rows, padding, sizes, presets, precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.errors import ConfigError, ShapeError
from semsam_jax.core.structs import Prompts, TextTable
from semsam_jax.models.denoising import DenoisingTargets
from semsam_jax.models.heads import mask_logits
from semsam_jax.models.presets import PRESETS, model_config
from semsam_jax.models.prompt_encoder import BOX_TYPE
from semsam_jax.models.semantic_sam import SemanticSAM, init_params
from tests.models.random_params import random_params

TINY = dataclasses.replace(model_config("tiny"), text=None)
MODEL = SemanticSAM(TINY)


@pytest.fixture(scope="module")
def params():
    return random_params(lambda key: init_params(MODEL, key))


@pytest.fixture(scope="module")
def pyramid(params):
    image = jax.random.randint(jax.random.key(2), (2, 64, 96, 3), 0, 255).astype(jnp.uint8)
    encode = jax.jit(lambda *args: MODEL.apply({"params": params}, *args, method="encode_image"))
    return encode(image, jnp.array([[64, 96], [50, 70]]))


def _prompts(key, count, batch=2):
    return Prompts(
        boxes=jax.random.uniform(key, (batch, count, 4), minval=0.1, maxval=0.9),
        type_index=jnp.zeros((batch, count), jnp.int32),
        valid=jnp.ones((batch, count), bool),
    )


@pytest.fixture(scope="module")
def decode(params):
    return jax.jit(
        lambda pyramid, prompts, isolate=True: MODEL.apply(
            {"params": params}, pyramid, prompts, isolate=isolate, method="decode_prompts"
        ),
        static_argnames="isolate",
    )


def _assert_close(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5), a, b)


def test_prompts_do_not_see_each_other(pyramid, decode):
    prompts = _prompts(jax.random.key(3), 5)
    together = decode(pyramid, prompts)
    assert together.boxes.shape == (1, 2, 5, 6, 4)
    alone = decode(pyramid, jax.tree.map(lambda x: x[:, 2:3], prompts))
    _assert_close(jax.tree.map(lambda x: x[:, :, 2:3], together), alone)


def test_together_mode_is_the_quirk_and_ignores_padding(pyramid, decode):
    prompts = _prompts(jax.random.key(3), 5)
    apart = decode(pyramid, prompts)
    together = decode(pyramid, prompts, isolate=False)
    assert np.abs(together.mask_embed - apart.mask_embed).max() > 1e-3
    padded = dataclasses.replace(prompts, valid=jnp.arange(5)[None].repeat(2, 0) < 3)
    first = jax.tree.map(lambda x: x[:, :3], prompts)
    _assert_close(
        jax.tree.map(lambda x: x[:, :, :3], decode(pyramid, padded, isolate=False)),
        decode(pyramid, first, isolate=False),
    )


def test_rows_of_a_batch_do_not_see_each_other(pyramid, decode):
    prompts = _prompts(jax.random.key(3), 3)
    both = decode(pyramid, prompts)
    second = decode(*jax.tree.map(lambda x: x[1:], (pyramid, prompts)))
    _assert_close(jax.tree.map(lambda x: x[:, 1:], both), second)


def test_canvas_outside_the_image_does_not_matter(params):
    image = jax.random.randint(jax.random.key(2), (1, 64, 64, 3), 0, 255).astype(jnp.uint8)
    encode = jax.jit(
        lambda x: (
            MODEL.apply(
                {"params": params}, x, jnp.array([[40, 50]]), method="encode_image"
            ).mask_features
        )
    )
    other = image.at[:, 40:].set(7).at[:, :, 50:].set(9)
    np.testing.assert_array_equal(encode(image), encode(other))


def _text(key):
    a, b = jax.random.split(key)
    rows = jax.random.normal(a, (4, 48)), jax.random.normal(b, (3, 48))
    return TextTable(*(x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in rows))


def _targets(counts, num_slots=10, n=4):
    keys = jax.random.split(jax.random.key(5), 2)
    b = len(counts)
    return DenoisingTargets(
        boxes=jax.random.uniform(keys[0], (b, n, 4), minval=0.2, maxval=0.6),
        object_id=jnp.tile(jnp.array([0, 3, -1, 2]), (b, 1)),
        part_id=jnp.tile(jnp.array([-1, 5, -1, -1]), (b, 1)),
        instance_valid=jnp.arange(n)[None] < jnp.array(counts)[:, None],
        noise=jax.random.uniform(keys[1], (b, num_slots, 4)),
    )


@pytest.fixture(scope="module")
def generic(params):
    return jax.jit(
        lambda *args, **kwargs: MODEL.apply(
            {"params": params}, *args, method="decode_generic", **kwargs
        )
    )


def test_matching_queries_do_not_see_the_ground_truth(pyramid, generic):
    text = _text(jax.random.key(4))
    plain = generic(pyramid, text)
    noised = generic(pyramid, text, denoising=_targets([3, 0]))
    assert plain.layers.boxes.shape == (4, 2, 20, 4)
    assert noised.denoising.part_logits.shape == (4, 2, 10, 3)
    assert plain.denoising is None
    _assert_close(noised.layers, plain.layers, atol=1e-5)
    _assert_close(noised.proposals, plain.proposals, atol=1e-5)
    assert np.isfinite(np.concatenate([x.ravel() for x in jax.tree.leaves(noised.denoising)])).all()


def test_denoising_groups_do_not_see_each_other(pyramid, generic):
    text, targets = _text(jax.random.key(4)), _targets([3, 4])
    first = generic(pyramid, text, denoising=targets)
    moved = dataclasses.replace(targets, noise=targets.noise.at[:, 3:].multiply(0.3))
    second = generic(pyramid, text, denoising=moved)
    # Image 0 has groups of three slots, image 1 of four: its first group has changed.
    a, b = first.denoising.mask_embed, second.denoising.mask_embed
    np.testing.assert_allclose(a[:, 0, :3], b[:, 0, :3], atol=1e-5)
    assert np.abs(a[1:, 0, 3:9] - b[1:, 0, 3:9]).min(axis=(0, 2)).max() > 0
    assert np.abs(a[-1, 1, :3] - b[-1, 1, :3]).max() > 1e-4


def test_vocabulary_decides_which_tokens_are_chosen(pyramid, generic):
    text = _text(jax.random.key(4))
    every = generic(pyramid, text, vocab_valid=jnp.ones((2, 7), bool))
    _assert_close(every, generic(pyramid, text))
    only = jnp.zeros((2, 7), bool).at[0, 1].set(True).at[1, 6].set(True)
    chosen = generic(pyramid, text, vocab_valid=only).proposals
    # The proposals' own logits use one norm more; the best must stay the best by rank.
    assert not np.allclose(chosen.boxes, every.proposals.boxes)


def test_gradient_of_a_training_pass_is_finite(params, pyramid):
    text, prompts = _text(jax.random.key(4)), _prompts(jax.random.key(3), 2)

    def run(model):
        kwargs = {"noise": jnp.full((2, 2, 4), 0.7), "is_box": jnp.array([[True, False]] * 2)}
        out = model.decode_prompts(pyramid, prompts, text, all_layers=True, **kwargs)
        return out, model.decode_generic(pyramid, text, denoising=_targets([3, 0]))

    def loss(params):
        out = MODEL.apply({"params": params}, method=run)
        leaves = [x for x in jax.tree.leaves(out) if x.dtype == jnp.float32]
        return sum(jnp.square(x).mean() for x in leaves)

    # Runs once: most of the time would go into optimising the program.
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    grads = jax.jit(jax.grad(loss), compiler_options=quick)(params)
    flat = jax.tree_util.tree_leaves_with_path(grads)
    assert all(np.isfinite(g).all() for _, g in flat)
    still = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, g in flat
        if not np.abs(g).max() > 0
    }
    outside = {name for name in still if not name.startswith(("backbone", "pixel_decoder"))}
    assert outside == set()


# Counts of the original (interactive parts only): docs/reference.md, section 16.
@pytest.mark.parametrize(("preset", "count"), [("swin_t", 52_980_543), ("swin_l", 222_799_161)])
def test_parameter_count_of_the_paper_models(preset, count):
    config = dataclasses.replace(model_config(preset), text=None)
    model = SemanticSAM(config, dtype=jnp.bfloat16, remat="full")
    shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    total = sum(x.size for x in jax.tree.leaves(shapes))
    # The original has no query selector and its SA-1B models keep no logit scale.
    extra = sum(x.size for x in jax.tree.leaves(shapes["query_selector"])) + 1
    assert total - extra == count
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_runs_abstractly(preset):
    config = model_config(preset)
    model = SemanticSAM(config, dtype=jnp.bfloat16)

    def run(key):
        params = init_params(model, key)
        image, size = jnp.zeros((1, 640, 864, 3), jnp.uint8), jnp.array([[640, 800]])
        pyramid = model.apply(
            {"params": params},
            image,
            size,
            train=True,
            rngs={"drop_path": key},
            method="encode_image",
        )
        prompts = _prompts(key, 3, batch=1)
        out = model.apply({"params": params}, pyramid, prompts, method="decode_prompts")
        return pyramid, out, mask_logits(out.mask_embed[0], pyramid.mask_features)

    pyramid, out, masks = jax.eval_shape(run, jax.random.key(0))
    assert [x.shape[1:3] for x in pyramid.levels] == [(80, 108), (40, 54), (20, 27), (10, 14)]
    assert pyramid.mask_features.dtype == jnp.float32
    assert out.object_logits is None
    assert out.pred_ious.shape == (1, 1, 3, 6)
    assert masks.shape == (1, 3, 6, 160, 216)


def test_errors_name_the_fix(params, pyramid):
    with pytest.raises(ShapeError, match="32"):
        MODEL.apply(
            {"params": params},
            jnp.zeros((1, 60, 64, 3), jnp.uint8),
            jnp.array([[60, 64]]),
            method="encode_image",
        )
    with pytest.raises(ConfigError, match="text"):
        MODEL.apply({"params": params}, jnp.zeros((1, 18), jnp.int32), method="encode_text")
    plain = SemanticSAM(dataclasses.replace(TINY, has_generic=False))
    with pytest.raises(ConfigError, match="has_generic"):
        plain.apply({"params": params}, pyramid, _text(jax.random.key(4)), method="decode_generic")


def test_masks_of_box_prompts_end_at_their_box():
    """A model with `box_margin` limits boxes alone; costs and logits agree with the limits."""
    decoder = dataclasses.replace(TINY.decoder, box_margin=1.5, mask_window=True)
    model = SemanticSAM(dataclasses.replace(TINY, decoder=decoder))
    params = random_params(lambda key: init_params(model, key))
    image = jax.random.randint(jax.random.key(2), (1, 64, 64, 3), 0, 255).astype(jnp.uint8)

    @jax.jit
    def answer(image, prompts):
        pyramid = model.apply(
            {"params": params}, image, jnp.full((1, 2), 64), method="encode_image"
        )
        return pyramid, model.apply({"params": params}, pyramid, prompts, method="decode_prompts")

    box = jnp.asarray([[[0.5, 0.5, 0.3, 0.3], [0.5, 0.5, 0.3, 0.3]]])
    prompts = Prompts(box, jnp.asarray([[BOX_TYPE, 0]]), jnp.ones((1, 2), bool))
    pyramid, found = answer(image, prompts)
    limits = np.asarray(found.mask_limits)[0, 0, :, 0]
    np.testing.assert_allclose(limits, [[0.275, 0.275, 0.725, 0.725], [0, 0, 1, 1]], atol=1e-6)
    embed, limits = found.mask_embed[0], found.mask_limits[0]
    assert embed.shape[-1] == TINY.pixel_decoder.mask_dim + 6 == pyramid.mask_features.shape[-1]
    whole = np.asarray(mask_logits(embed, pyramid.mask_features))
    cut = np.asarray(mask_logits(embed, pyramid.mask_features, limits))
    inside = np.abs((np.arange(16) + 0.5) / 16 - 0.5) < 0.225
    inside = inside[:, None] & inside
    np.testing.assert_array_equal(cut[0, 0][:, inside], whole[0, 0][:, inside])
    np.testing.assert_array_equal(cut[0, 0][:, ~inside], -10)
    np.testing.assert_array_equal(cut[0, 1], whole[0, 1])
