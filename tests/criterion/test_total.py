"""The scalar of a step: both streams, random points, shards and settings."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.structs import Assignment, StreamBatch, StreamOutputs
from semsam_jax.criterion.points import PointPlan
from semsam_jax.criterion.terms import CriterionConfig, LossWeights
from semsam_jax.criterion.total import total_loss
from semsam_jax.parallel.mesh import batch_sharding, build_mesh
from tests.criterion.test_generic import make_case as generic_case
from tests.criterion.test_interactive import make_case as interactive_case

CONFIG = CriterionConfig(num_points=32)


@pytest.fixture(scope="module")
def case():
    """Two images per stream."""
    prompts, prompt_features, interactive, token, _, _ = interactive_case(0)
    queries, query_features, generic, assigned, _, _ = generic_case(1)
    return (
        StreamOutputs(prompts, prompt_features, queries, query_features),
        StreamBatch(interactive, generic),
        Assignment(token, assigned, jnp.zeros(4, jnp.int32)),
    )


@functools.partial(jax.jit, static_argnums=4)
def run(outputs, batch, assignment, key, config=CONFIG):
    return total_loss(outputs, batch, assignment, key, config)


def test_total_is_the_sum_of_what_is_logged(case):
    loss, metrics = run(*case, jax.random.key(2))
    parts = metrics["interactive/total"] + metrics["generic/total"]
    np.testing.assert_allclose(loss, parts, rtol=1e-6)
    assert metrics["loss"] == loss
    assert int(metrics["interactive/num_pairs"]) == 10
    assert int(metrics["generic/num_instances"]) == 5
    groups = {name.split("/")[0] for name in metrics} - {"loss"}
    assert groups == {"interactive", "generic", "denoising", "proposals"}
    assert all(value.shape == () and np.isfinite(value) for value in metrics.values())


def test_the_six_tokens_do_not_know_pseudo_targets(case):
    outputs, batch, assignment = case
    _, plain = run(*case, jax.random.key(2))
    pseudo = jnp.zeros_like(batch.interactive.pseudo_targets)
    batch = batch.replace(interactive=batch.interactive.replace(pseudo_targets=pseudo))
    _, metrics = run(outputs, batch, assignment, jax.random.key(2))
    assert metrics == plain  # every bit


def test_streams_are_weighed_and_may_be_absent(case):
    outputs, batch, assignment = case
    key = jax.random.key(2)
    _, metrics = run(*case, key)
    config = dataclasses.replace(CONFIG, interactive=0.5, generic=2.0)
    loss, _ = run(outputs, batch, assignment, key, config)
    want = 0.5 * metrics["interactive/total"] + 2.0 * metrics["generic/total"]
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    alone, own = run(
        outputs.replace(queries=None, query_features=None),
        batch.replace(generic=None),
        assignment.replace(query_of_instance=None),
        key,
    )
    np.testing.assert_allclose(alone, metrics["interactive/total"], rtol=1e-5)
    assert not any(name.startswith("generic") for name in own)


def test_weights_reach_every_term(case):
    outputs, batch, assignment = case
    none = {field.name: 0.0 for field in dataclasses.fields(LossWeights)}
    silent = dataclasses.replace(CONFIG, **none)
    loss, metrics = run(outputs, batch, assignment, jax.random.key(0), silent)
    assert loss == 0
    assert metrics["interactive/mask_bce"] > 0


def test_points_follow_the_key_alone(case):
    same, other = (run(*case, jax.random.key(k))[0] for k in (3, 4))
    assert run(*case, jax.random.key(3))[0] == same
    assert same != other
    plan = PointPlan.of(12544, 3.0, 0.75)
    assert (plan.num_candidates, plan.num_chosen, plan.num_fresh) == (37632, 9408, 3136)


@pytest.mark.nightly
def test_eight_devices_equal_one(case):
    """Also the gradients: the normaliser is that of the global batch."""
    outputs, batch, assignment = case
    wide = jax.tree.map(lambda x: jnp.concatenate([x] * 4), (batch, assignment))
    features = {
        name: jnp.concatenate([getattr(outputs, name)] * 4)
        for name in ("prompt_features", "query_features")
    }
    queries = outputs.queries.replace(
        **{
            name: jax.tree.map(lambda x: jnp.concatenate([x] * 4, axis=1), value)
            for name, value in (
                ("layers", outputs.queries.layers),
                ("denoising", outputs.queries.denoising),
            )
        },
        proposals=jax.tree.map(lambda x: jnp.concatenate([x] * 4), outputs.queries.proposals),
        denoising_queries=jax.tree.map(
            lambda x: jnp.concatenate([x] * 4), outputs.queries.denoising_queries
        ),
    )
    prompts = jax.tree.map(lambda x: jnp.concatenate([x] * 4, axis=1), outputs.prompts)
    outputs = StreamOutputs(prompts=prompts, queries=queries, **features)

    @jax.jit
    def step(features, batch, assignment):
        def loss(features):
            own = outputs.replace(**features)
            return total_loss(own, batch, assignment, jax.random.key(5), CONFIG)[0]

        return jax.value_and_grad(loss)(features)

    want, want_grads = step(features, *wide)
    rows = batch_sharding(build_mesh(2))
    got, grads = step(*jax.device_put((features, *wide), rows))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for name, gradient in grads.items():
        np.testing.assert_allclose(gradient, want_grads[name], atol=1e-6)
