"""How exact products are asked to be: what is stated as float32 is, and what need not be is not."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from semsam_jax import config
from semsam_jax.core.structs import TextTable
from semsam_jax.criterion.generic import generic_losses
from semsam_jax.criterion.interactive import interactive_losses
from semsam_jax.criterion.terms import LossWeights
from semsam_jax.matching.costs import prompt_costs, query_costs
from semsam_jax.models.deformable import DeformableAttention
from semsam_jax.models.heads import Heads
from semsam_jax.models.presets import DecoderConfig
from semsam_jax.parallel.arithmetic import count
from semsam_jax.train.build import criterion_config
from tests.criterion import test_label_rules as rules
from tests.criterion.test_generic import make_case

EXACT, DEFAULT = "float32 highest", "float32"


def kinds(function, *args):
    """Kinds of products in a function and in its gradient."""
    return set(products(function, *args))


def products(function, *args):
    """Products of a function where nobody asks for more, as a run traces it."""
    with jax.default_matmul_precision("default"):
        return count(jax.make_jaxpr(function)(*args)).products


@pytest.mark.parametrize(("dtype", "wanted"), [("bfloat16", DEFAULT), ("float32", EXACT)])
def test_losses_and_costs_are_as_exact_as_the_model(dtype, wanted):
    criterion = criterion_config(config.build({"model": {"dtype": dtype}}))
    criterion = dataclasses.replace(criterion, num_points=32, prompt_point_ratio=0.0)
    out, features, rows, assigned, _, _ = make_case(0)
    points = criterion.plan.draw(jax.random.key(0), 2)

    def generic(features):
        groups = generic_losses(out, features, rows, assigned, points, criterion)
        return sum(jnp.sum(v) for terms in groups.values() for v in terms.values())

    def interactive(features):
        terms = interactive_losses(
            rules.predictions(1, 1, 1, 6),
            features,
            rules.rows([0], [-1]),
            jnp.zeros((1, 1, 1), jnp.int32),
            points[:, :1],
            criterion,
        )
        return sum(jnp.sum(value) for value in terms.values())

    def costs(features):
        return query_costs(out, features, rows, points[0, :, 0], LossWeights(), criterion.precision)

    def clicks(features):
        one = jax.tree.map(lambda x: x[0], rules.predictions(1, 1, 1, 6))
        return prompt_costs(
            one,
            features,
            rules.rows([0], [-1]),
            points[0, :1, 0],
            LossWeights(),
            criterion.precision,
        )

    assert kinds(jax.grad(generic), features) == {wanted}
    assert kinds(jax.grad(interactive), jnp.zeros((1, 4, 4, 4))) == {wanted}
    assert kinds(costs, features) == {wanted}
    assert kinds(clicks, jnp.zeros((1, 4, 4, 4))) == {wanted}


def test_boxes_and_names_are_float32_in_a_bfloat16_model():
    sizes = DecoderConfig(dim=16, text_dim=8, part_owner=True)
    heads = Heads(sizes, 8, dtype=jnp.bfloat16)
    content = jnp.ones((1, 3, 16), jnp.bfloat16)
    text = TextTable(jnp.ones((2, 8)), jnp.ones((2, 8)))
    boxes = jnp.full((1, 3, 4), 0.5)

    def everything(module, content):
        return (
            module.refine_boxes(content, boxes),
            module.predict(content, boxes, text, has_ious=True),
        )

    params = jax.eval_shape(
        lambda: heads.init(jax.random.key(0), content, method=everything)["params"]
    )

    def apply(method):
        return lambda params: heads.apply({"params": params}, method=method)

    assert kinds(apply(lambda m: m.refine_boxes(content, boxes)), params) == {EXACT}
    assert kinds(apply(lambda m: m.name_logits(content, text)), params) == {EXACT}
    assert kinds(apply(lambda m: m.owner_logits(content, text)), params) == {EXACT}
    assert kinds(apply(lambda m: m.mask_embed(content)), params) == {"bfloat16"}


def test_sampling_offsets_are_float32_in_a_bfloat16_model():
    attention = DeformableAttention(2, 2, dtype=jnp.bfloat16)
    query = jnp.ones((1, 3, 16), jnp.bfloat16)
    args = (query, jnp.full((1, 3, 1, 4), 0.5), jnp.ones((1, 16, 16), jnp.bfloat16), ((4, 4),))
    found = products(lambda: attention.init_with_output(jax.random.key(0), *args)[0])
    assert found[EXACT] >= 2 * 3 * 16 * 2 * 2 * 2  # the offsets: 3 queries, 16 to 8 channels
    assert DEFAULT not in found
