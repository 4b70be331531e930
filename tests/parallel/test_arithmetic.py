"""Products, repetition and moved rows of small programs, counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from semsam_jax.ops.deform_attention import deform_attention
from semsam_jax.parallel import arithmetic

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
W = jax.ShapeDtypeStruct((8, 8), jnp.float32)


def count(function, *args) -> arithmetic.Arithmetic:
    return arithmetic.count(jax.jit(function).trace(*args).jaxpr)


def test_products_are_told_apart_by_what_they_cost():
    def run(x, w):
        exact = jnp.matmul(x, w, precision=jax.lax.Precision.HIGHEST)
        plain = jnp.matmul(x, w, precision=jax.lax.Precision.DEFAULT)
        return exact + plain + (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16))

    with jax.default_matmul_precision(None):
        found = count(run, X, W)
    each = 2 * 4 * 8 * 8
    assert found.products == {"float32 highest": each, "float32": each, "bfloat16": each}
    assert (found.total, found.repeated) == (3 * each, 0)


def test_a_loop_counts_as_often_as_it_runs_and_repetition_is_known():
    def loss(w, x):
        layer = jax.checkpoint(lambda x, _: (jnp.tanh(x @ w), None), prevent_cse=False)
        return jax.lax.scan(layer, x, None, length=3)[0].sum()

    found = count(jax.grad(loss), W, X)
    once = 2 * 4 * 8 * 8
    # Forward, forward again, and two products backward, three layers each.
    assert found.total == 3 * 4 * once
    assert found.repeated == 3 * once
    assert found.useful == 9 * once


def test_moved_rows():
    table = jax.ShapeDtypeStruct((10, 8), jnp.float32)
    index = jax.ShapeDtypeStruct((5,), jnp.int32)
    found = count(lambda t, i: t.at[i].add(t[i]), table, index)
    assert (found.gathered, found.scattered) == (5, 5)


def test_programs_are_added_as_often_as_they_run():
    one = arithmetic.Arithmetic({"bfloat16": 2.0}, 1.0, 3.0, 4.0)
    two = arithmetic.Arithmetic({"bfloat16": 1.0, "float32": 5.0})
    total = arithmetic.add([(one, 2), (two, 1)])
    assert total == arithmetic.Arithmetic({"bfloat16": 5.0, "float32": 5.0}, 2.0, 6.0, 8.0)


@pytest.mark.parametrize("form", ["cell_gather", "matmul"])
def test_the_kernel_moves_no_rows(form):
    value = jax.ShapeDtypeStruct((1, 6, 1, 4), jnp.float32)
    places = jax.ShapeDtypeStruct((1, 5, 1, 1, 1, 2), jnp.float32)
    weights = jax.ShapeDtypeStruct((1, 5, 1, 1, 1), jnp.float32)

    def run(value, places, weights):
        return deform_attention(value, ((2, 3),), places, weights, implementation=form)

    found = count(run, value, places, weights)
    assert found.gathered == (5 if form == "cell_gather" else 0)
    assert found.total == 0
    if form == "matmul":
        # Ranges, places, weights (one tile of 256 queries) and one step of 16 rows of 16 pixels.
        shapes = ((1,), (1, 1, 2, 256), (1, 1, 1, 256), (1, 1, 4, 256))
        want = arithmetic.Kernel("deform_attention_forward", shapes, 1)
        assert found.kernels == (want,)
        assert arithmetic.add([(found, 3)]).kernels[0].times == 3
