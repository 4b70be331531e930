"""Learned embeddings take the places of names that a table lacks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.convert.tree import check_tree
from semsam_jax.core.errors import CheckpointError
from semsam_jax.core.structs import TextTable
from semsam_jax.models.learned_names import LearnedNames
from semsam_jax.models.presets import PRESETS, from_json, to_json
from semsam_jax.models.semantic_sam import SemanticSAM, init_params


def test_rows_are_put_in_their_places_with_length_one():
    module, rows = LearnedNames(2, 3), jnp.asarray([[3.0, 0.0, 4.0], [0.0, 0.5, 0.0]])
    table = TextTable(objects=jnp.eye(3)[:2], parts=-jnp.eye(3))
    index = jnp.asarray([-1, 1, 0, -1, 1])

    def fill(rows):
        return module.apply({"params": {"rows": rows}}, table, index)

    got = fill(rows)
    np.testing.assert_allclose(got.objects, [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(got.parts, [[0.6, 0, 0.8], [0, -1, 0], [0, 1, 0]], rtol=1e-6)
    grad = jax.grad(lambda rows: fill(rows).parts[:, 1].sum())(rows)
    np.testing.assert_allclose(grad, [[0, 0.2, 0], [0, 0, 0]], atol=1e-6)


def test_a_model_has_as_many_rows_as_its_sizes_say():
    config = dataclasses.replace(PRESETS["lite"], learned_names=3)
    assert from_json(to_json(config)) == config
    shapes = jax.eval_shape(lambda: init_params(SemanticSAM(config), jax.random.key(0)))
    assert shapes["learned_names"]["rows"].shape == (3, 1024)
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    check_tree(params, config, "here")
    fewer = dataclasses.replace(config, learned_names=2)
    with pytest.raises(CheckpointError, match=r"learned_names/rows is \(3, 1024\), expected \(2, "):
        check_tree(params, fewer, "here")
    with pytest.raises(CheckpointError, match="unknown learned_names/rows"):
        check_tree(params, PRESETS["lite"], "here")
    del params["learned_names"]
    with pytest.raises(CheckpointError, match="no learned_names/rows"):
        check_tree(params, config, "here")
