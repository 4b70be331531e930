"""Decoder: order of the memory, gradients through references, remat, precision."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.models.decoder import Decoder, make_memory
from semsam_jax.models.presets import model_config
from semsam_jax.ops.boxes import inverse_sigmoid
from tests.models.random_params import random_params

CONFIG = dataclasses.replace(model_config("tiny").decoder, num_layers=3)


def _levels(key, batch=1):
    keys = jax.random.split(key, 4)
    sizes = ((8, 10), (4, 5), (2, 3), (1, 2))
    return tuple(
        jax.random.normal(k, (batch, *s, CONFIG.dim)) for k, s in zip(keys, sizes, strict=True)
    )


def _forward(module, content, references, levels):
    states = module(content, references, make_memory(levels))
    return states, module.predict(states, None, is_generic=False)


@pytest.fixture(scope="module")
def case():
    keys = jax.random.split(jax.random.key(0), 4)
    content = jax.random.normal(keys[0], (1, 7, CONFIG.dim))
    references = jax.random.normal(keys[1], (1, 7, 4))
    levels = _levels(keys[2])
    decoder = Decoder(CONFIG, mask_dim=32)
    params = random_params(
        lambda key: decoder.init(key, content, references, levels, method=_forward)["params"]
    )
    return params, content, references, levels


@functools.partial(jax.jit, static_argnames=("dtype", "remat"))
def _apply(params, content, references, levels, *, dtype=jnp.float32, remat="none"):
    decoder = Decoder(CONFIG, mask_dim=32, dtype=dtype, remat=remat)
    return decoder.apply({"params": params}, content, references, levels, method=_forward)


def test_memory_goes_from_low_to_high_resolution():
    levels = _levels(jax.random.key(1))
    memory = make_memory(levels)
    assert memory.shapes == ((1, 2), (2, 3), (4, 5), (8, 10))
    np.testing.assert_array_equal(memory.tokens[0, :2], levels[3][0].reshape(2, -1))
    np.testing.assert_array_equal(memory.tokens[0, -80:], levels[0][0].reshape(80, -1))


def test_layers_run_one_after_the_other(case):
    params, content, references, levels = case
    states, _ = _apply(*case)
    memory = make_memory(levels)
    one = Decoder(dataclasses.replace(CONFIG, num_layers=1), mask_dim=32)
    run = jax.jit(lambda tree, *args: one.apply({"params": tree}, *args, memory))
    for i in range(3):
        tree = params | {"layers": jax.tree.map(lambda x, i=i: x[i : i + 1], params["layers"])}
        step = run(tree, content, references)
        content = step.outputs[0]
        np.testing.assert_allclose(content, states.outputs[i], atol=1e-4)
        np.testing.assert_allclose(step.references[1], states.references[i + 1], atol=1e-5)
        references = inverse_sigmoid(step.references[1])


def test_box_loss_reaches_one_refinement_back(case):
    """The box of a layer trains its own offset and the refinement before it, no more.

    The box head has one bias for all layers. In logit space it adds 1 to the offset of
    the box, and 1 to the refined reference that the box starts from, if there is one.
    """
    params, content, references, levels = case

    def box_logits(bias, layer):
        head = params["bbox_embed"]
        head = head | {"layers_2": head["layers_2"] | {"bias": bias}}
        _, out = _apply(params | {"bbox_embed": head}, content, references, levels)
        return inverse_sigmoid(out.boxes[layer]).sum(0).sum(0)

    bias = params["bbox_embed"]["layers_2"]["bias"]
    jacobian = jax.jit(jax.jacrev(box_logits), static_argnums=1)
    for layer, refinements in ((0, 1), (1, 2), (2, 2)):
        want = refinements * content.shape[1] * np.eye(4)
        np.testing.assert_allclose(jacobian(bias, layer), want, rtol=1e-3, atol=1e-3)


@pytest.mark.nightly
def test_remat_changes_nothing(case):
    def loss(params, remat):
        states, out = _apply(params, *case[1:], remat=remat)
        return jnp.square(states.outputs).mean() + out.boxes.mean() + out.pred_ious.mean()

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    for a, b in zip(
        jax.tree.leaves(grad(case[0], "none")), jax.tree.leaves(grad(case[0], "full")), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_bfloat16_keeps_boxes_in_float32(case):
    states, out = _apply(*case, dtype=jnp.bfloat16)
    _, exact = _apply(*case)
    assert states.outputs.dtype == jnp.bfloat16
    assert states.references.dtype == out.boxes.dtype == out.mask_embed.dtype == jnp.float32
    np.testing.assert_allclose(out.boxes, exact.boxes, atol=0.05)
