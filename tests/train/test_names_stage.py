"""The stage of names trains the class heads, what they read and what they learn, and nothing else.

The model is small; what is frozen is what the recipe freezes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lite
from semsam_jax.core.structs import StreamBatch, TextTable
from semsam_jax.models.semantic_sam import SemanticSAM, init_params
from semsam_jax.parallel.mesh import build_mesh
from semsam_jax.train.state import shard_state
from semsam_jax.train.step import TextInputs, TrainStep
from tests.models.random_params import random_params
from tests.sharded import small

FROZEN = lite.get_config("names").optimizer.frozen
MODEL = dataclasses.replace(
    small.MODEL,
    text=None,
    has_generic=False,
    learned_names=2,
    decoder=dataclasses.replace(
        small.MODEL.decoder, part_owner=True, pooled_names=True, mask_window=True, box_margin=1.05
    ),
)


def make_step(mesh, frozen):
    return TrainStep(
        model=SemanticSAM(MODEL),
        tx=small.TX,
        criterion=small.CRITERION,
        mesh=mesh,
        num_objects=small.NUM_OBJECTS,
        seed=0,
        frozen=frozen,
        class_weights=np.ones(small.NUM_NAMES, np.float32),
    )


def make_inputs(mesh):
    """A state, two rows of prompts, and names of which two are learned."""
    params = random_params(lambda key: init_params(SemanticSAM(MODEL), key), seed=3)
    rows = jax.tree.map(lambda x: jnp.asarray(x[:2]), small.batch().interactive)
    # Of four instances two are parts and two are whole objects.
    rows = rows.replace(part_id=rows.part_id.at[:, ::2].set(-1), object_id=rows.object_id.clip(0))
    rng = np.random.default_rng(0)
    names = rng.normal(size=(small.NUM_NAMES, MODEL.decoder.text_dim)).astype(np.float32)
    names /= np.linalg.norm(names, axis=1, keepdims=True)
    table = TextTable(*map(jnp.asarray, np.split(names, [small.NUM_OBJECTS])))
    learned = np.full(small.NUM_NAMES, -1, np.int32)
    learned[1], learned[6] = 0, 1
    text = TextInputs(table=table, learned=jnp.asarray(learned))
    return shard_state(params, small.TX, False, mesh), StreamBatch(rows, None), text


def num_bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.timeout(3000)
def test_heads_pooled_features_and_learned_names_have_gradients_and_nothing_else():
    """What is frozen keeps nothing for a backward pass, either."""
    mesh = build_mesh(1, jax.devices()[:1])
    step, (state, batch, text) = make_step(mesh, FROZEN), make_inputs(mesh)
    outputs, vjp_fn, costs = step.forward(state.params, state.step, batch, text)
    forward = make_step(mesh, ()).forward
    _, kept_of_all, _ = jax.eval_shape(forward, state.params, state.step, batch, text)
    assert num_bytes(vjp_fn) < 0.1 * num_bytes(kept_of_all)
    assignment, _ = step.match(costs, batch)
    new, metrics = step.backward(state, outputs, vjp_fn, assignment, batch)
    assert np.isfinite(float(metrics["loss"]))
    grads = jax.device_get(new.opt_state.trace)
    sizes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(np.abs(leaf).max())
        for path, leaf in jax.tree.leaves_with_path(grads)
    }
    moved = {name for name, size in sizes.items() if size > 0}
    kinds = ("object", "part", "owner")
    wanted = {f"decoder/{kind}{of}_embed" for kind in kinds for of in ("", "_pooled")}
    assert moved == wanted | {"decoder/logit_scale", "learned_names/rows"}
