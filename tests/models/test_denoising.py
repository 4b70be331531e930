"""Denoising slots: who sits where, who sees whom, what they carry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.structs import TextTable
from semsam_jax.models.denoising import (
    Denoising,
    DenoisingTargets,
    assign_slots,
    attention_mask,
)


def _slots(counts, n, g):
    valid = jnp.arange(n)[None] < jnp.array(counts)[:, None]
    return assign_slots(valid, g)


def test_slots_are_dealt_in_whole_groups():
    slots = _slots([3, 0, 1, 9], n=9, g=7)
    np.testing.assert_array_equal(slots.num_groups, [2, 0, 7, 1])
    np.testing.assert_array_equal(slots.valid.sum(-1), [6, 0, 7, 7])
    np.testing.assert_array_equal(slots.instance[0], [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(slots.group[0], [0, 0, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(slots.instance[3], np.arange(7))
    np.testing.assert_array_equal(slots.group[2], np.arange(7))


@pytest.mark.parametrize("count", [0, 1, 3, 7, 9])
def test_mask_by_definition(count):
    num_slots, num_queries = 7, 4
    slots = _slots([count], n=9, g=num_slots)
    blocked = np.asarray(attention_mask(slots, num_queries)[0])
    valid, group = np.asarray(slots.valid[0]), np.asarray(slots.group[0])
    for i in range(num_slots + num_queries):
        for j in range(num_slots + num_queries):
            if i >= num_slots:
                sees = j >= num_slots
            elif not valid[i]:
                sees = i == j
            else:
                sees = j >= num_slots or (valid[j] and group[i] == group[j])
            assert blocked[i, j] == (not sees), (i, j)


@pytest.fixture
def targets():
    return DenoisingTargets(
        boxes=jnp.array([[[0.5, 0.5, 0.2, 0.4], [0.3, 0.3, 0.1, 0.1], [0.6, 0.4, 0.3, 0.1]]]),
        object_id=jnp.array([[1, 0, -1]]),
        part_id=jnp.array([[-1, 4, -1]]),
        instance_valid=jnp.ones((1, 3), bool),
        noise=jnp.full((1, 4, 4), 0.5),
    )


def test_content_is_the_most_specific_name(targets):
    text = TextTable(
        objects=jax.random.normal(jax.random.key(0), (3, 8)),
        parts=jax.random.normal(jax.random.key(1), (2, 8)),
    )
    module = Denoising(dim=6, text_dim=8, noise_scale=0.4)
    params = module.init(jax.random.key(2), targets, text)
    tokens = module.apply(params, targets, text)
    mapper = params["params"]["lang_mapper"]
    np.testing.assert_allclose(tokens.content[0, 0], text.objects[1] @ mapper, atol=1e-6)
    np.testing.assert_allclose(tokens.content[0, 1], text.parts[1] @ mapper, atol=1e-6)
    np.testing.assert_array_equal(tokens.content[0, 2:], 0.0)
    # Noise 0.5 is the middle of the uniform range: no shift at all.
    boxes = jax.nn.sigmoid(tokens.references[0, :3])
    np.testing.assert_allclose(boxes, targets.boxes[0], atol=1e-6)


def test_noise_moves_boxes_by_the_stated_reach(targets):
    text = TextTable(objects=jnp.ones((3, 8)), parts=jnp.ones((2, 8)))
    module = Denoising(dim=6, text_dim=8, noise_scale=0.4)
    params = module.init(jax.random.key(2), targets, text)
    tokens = module.apply(params, targets.replace(noise=jnp.ones((1, 4, 4))), text)
    box = jax.nn.sigmoid(tokens.references[0, 0])
    np.testing.assert_allclose(box, [0.5 + 0.04, 0.5 + 0.08, 0.28, 0.56], atol=1e-6)
