"""Two-stage selection: anchors against recorded numbers, choice against a sort."""

import jax
import jax.numpy as jnp
import numpy as np

from semsam_jax.models.query_selector import QuerySelector, anchor_logits
from tests.golden.table import compare, golden

# Four levels whose sizes the recorded array does not name; they add up to 441 tokens.
SHAPES = ((2, 3), (4, 5), (8, 10), (16, 20))


def _recorded_shapes(unsigmoid):
    """Reads level sizes off the recorded anchors: distinct x and y per box size."""
    boxes = 1 / (1 + np.exp(-unsigmoid.astype(np.float64)))
    shapes = []
    for size in np.unique(boxes[:, 2].round(4)):
        level = boxes[np.isclose(boxes[:, 2], size, atol=1e-4)]
        shapes.append((len(np.unique(level[:, 1].round(4))), len(np.unique(level[:, 0].round(4)))))
    return tuple(shapes)


def test_anchors_golden():
    data = golden("units")
    want = data["proposals/unsigmoid"][0]
    got = anchor_logits(_recorded_shapes(want))
    compare("units", "proposals/unsigmoid", got[None], 1e-5)
    np.testing.assert_array_equal(data["proposals/out_memory"], data["proposals/memory"])


def test_anchors_at_the_border_are_infinite():
    anchors = anchor_logits(((2, 200),))
    x = np.tile((np.arange(200) + 0.5) / 200, 2)
    outside = (x <= 0.01) | (x >= 0.99)
    assert outside.sum() == 8
    np.testing.assert_array_equal(np.isinf(anchors).all(-1), outside)
    np.testing.assert_array_equal(np.isinf(anchors).any(-1), outside)


def _select(num_queries, shapes=SHAPES):
    count = sum(h * w for h, w in shapes)
    memory = jax.random.normal(jax.random.key(0), (2, count, 16))
    module = QuerySelector(num_queries=num_queries)

    def score(content):
        return content[..., 3]

    params = module.init(jax.random.key(1), memory, shapes, score)
    return memory, module, params, score


def test_takes_the_best_tokens_in_order():
    memory, module, params, score = _select(num_queries=20)
    out = module.apply(params, memory, SHAPES, score)
    kernel, bias = params["params"]["enc_output"]["kernel"], params["params"]["enc_output"]["bias"]
    x = np.asarray(memory) @ np.asarray(kernel) + np.asarray(bias)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    order = np.argsort(-x[..., 3], axis=1)[:, :20]
    np.testing.assert_array_equal(out.index, order)
    np.testing.assert_allclose(
        out.content, np.take_along_axis(x, order[..., None], axis=1), atol=1e-5
    )
    np.testing.assert_array_equal(out.anchors[1], anchor_logits(SHAPES)[order[1]])


def test_small_canvas_gives_every_token():
    memory, module, params, score = _select(num_queries=300, shapes=((1, 1), (2, 2)))
    assert module.apply(params, memory, ((1, 1), (2, 2)), score).content.shape == (2, 5, 16)


def test_scoring_passes_no_gradient():
    memory, module, params, _ = _select(num_queries=20)

    def loss(weight):
        out = module.apply(params, memory, SHAPES, lambda x: x[..., 3] * weight)
        return jnp.square(out.content).sum()

    assert jax.grad(loss)(1.0) == 0.0
