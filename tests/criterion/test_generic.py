"""The generic criterion and its costs against recorded numbers, and its invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.structs import DenoisingQueries, GenericPredictions, Predictions
from semsam_jax.criterion.generic import generic_losses
from semsam_jax.criterion.terms import CriterionConfig, LossWeights
from semsam_jax.criterion.total import weighted_sum
from semsam_jax.matching.costs import query_costs
from semsam_jax.matching.solvers import solve_queries
from tests.criterion import recorded
from tests.golden.table import compare, golden

NAMES = {
    "object_class": "loss_mask_cls",
    "mask_bce": "loss_mask_bce",
    "dice": "loss_mask_dice",
    "l1": "loss_bbox",
    "giou": "loss_giou",
}
SUFFIX = {"aux0": 1, "aux1": 2, "aux2": 3, "final": 0}
ORDER = (*recorded.GENERIC_LAYERS, "interm")


def recorded_assignment():
    data = golden("generic_openseed")
    out = np.zeros((1, len(ORDER), 5), np.int32)
    for layer, name in enumerate(ORDER):
        out[0, layer, data[f"crit/assign_target/{name}"]] = data[f"crit/assign_query/{name}"]
    return jnp.asarray(out)


def layer_of(predictions, name):
    if name == "interm":
        return predictions.proposals
    return jax.tree.map(lambda x: x[recorded.GENERIC_LAYERS.index(name)], predictions.layers)


def costs_of_layer(one, features, rows, points):
    """Costs [b, q, n] of one layer's predictions by themselves."""
    alone = recorded.generic_predictions()[0].replace(
        layers=jax.tree.map(lambda x: x[None][:0], one), proposals=one
    )
    return query_costs(alone, features, rows, points, LossWeights())[:, 0]


def test_costs_and_assignments_golden():
    predictions, features = recorded.generic_predictions()
    match, _ = recorded.generic_points()
    rows, want = recorded.generic_rows(), recorded_assignment()
    cost_of = jax.jit(lambda one, points: costs_of_layer(one, features, rows, points))
    costs = [cost_of(layer_of(predictions, name), match[name]) for name in ORDER]
    for name, cost in zip(ORDER, costs, strict=True):
        compare("generic_openseed", f"crit/cost/{name}", cost[0], 1e-4)
    answer, nonfinite = solve_queries(np.stack(costs, axis=1), np.asarray(rows.instance_valid))
    np.testing.assert_array_equal(answer, want)
    assert nonfinite.tolist() == [0]


def test_all_layers_at_once_equal_one_by_one():
    predictions, features = recorded.generic_predictions()
    match, _ = recorded.generic_points()
    rows = recorded.generic_rows()
    costs = query_costs(predictions, features, rows, match["final"], LossWeights())
    assert costs.shape == (1, 5, 20, 5)
    for layer, name in enumerate(ORDER):
        one = costs_of_layer(layer_of(predictions, name), features, rows, match["final"])
        np.testing.assert_allclose(costs[:, layer], one, atol=1e-5)


def test_losses_golden():
    data, config = golden("generic_openseed"), recorded.released_config()
    predictions, features = recorded.generic_predictions()
    _, points = recorded.generic_points()
    groups = jax.jit(
        lambda p: generic_losses(
            p, features, recorded.generic_rows(), recorded_assignment(), points, config
        )
    )(predictions)

    def check(key, got):
        compare("generic_openseed", key, got, 1e-4 * abs(float(data[key])))

    for layer, name in enumerate(recorded.GENERIC_LAYERS):
        for ours, theirs in NAMES.items():
            key = f"crit/loss_raw/{theirs}_{SUFFIX[name]}"
            for group, suffix in (("layers", ""), ("denoising", "_dn")):
                check(key + suffix, groups[group][ours][layer])
    for ours, theirs in NAMES.items():
        check(f"crit/loss_raw/{theirs}_0_interm", groups["proposals"][ours][0])
    total = sum(weighted_sum(terms, config.weights) for terms in groups.values())
    check("crit/loss_total_weighted", total)


def make_case(seed, b=2, n=4, q=6, g=5, objects=4, parts=3, d=8, layers=2):
    rng = np.random.default_rng(seed)

    def uniform(*shape, low=0.0, high=1.0):
        return jnp.asarray(rng.uniform(low, high, shape).astype(np.float32))

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape).astype(np.float32))

    masks = np.asarray(uniform(n, 32, 48) > 0.5)
    boxes = np.asarray(uniform(n, 4, low=0.2, high=0.6))
    rows = recorded.make_rows(masks, boxes, num_classes=objects + parts)
    rows = jax.tree.map(lambda x: jnp.concatenate([x] * b), rows).replace(
        object_id=jnp.array([[0, 1, 3, -1], [2, 2, -1, -1]]),
        part_id=jnp.array([[-1, 5, -1, -1], [4, -1, -1, -1]]),
        instance_valid=jnp.array([[True] * 3 + [False], [True] * 2 + [False] * 2]),
        vocab_valid=uniform(b, objects + parts) > 0.3,
    )

    def predictions(*lead):
        return Predictions(
            mask_embed=normal(*lead, d),
            boxes=uniform(*lead, 4, low=0.2, high=0.7),
            object_logits=normal(*lead, objects),
            part_logits=normal(*lead, parts),
        )

    queries = DenoisingQueries(
        instance=jnp.array([[0, 1, 2, 0, 0], [0, 1, 0, 1, 0]], jnp.int32),
        group=jnp.array([[0, 0, 0, 0, 0], [0, 0, 1, 1, 0]], jnp.int32),
        valid=jnp.array([[True] * 3 + [False] * 2, [True] * 4 + [False]]),
        num_groups=jnp.array([1, 2], jnp.int32),
    )
    out = GenericPredictions(
        predictions(layers, b, q), predictions(b, q), predictions(layers, b, g), queries
    )
    features = normal(b, 8, 12, d)
    config = CriterionConfig(num_points=32)
    points = config.plan.draw(jax.random.key(seed), b)
    assigned = jnp.array([[[0, 2, 5, 0], [1, 0, 3, 0], [4, 2, 1, 0]]] * b, jnp.int32)
    return out, features, rows, assigned, points, config


@pytest.fixture(scope="module")
def case():
    return make_case(0)


@functools.partial(jax.jit, static_argnames="config")
def losses_and_grads(out, features, rows, assigned, points, config):
    def total(trainable, features):
        own = out.replace(layers=trainable[0], proposals=trainable[1], denoising=trainable[2])
        groups = generic_losses(own, features, rows, assigned, points, config)
        return sum(weighted_sum(t, config.weights) for t in groups.values()), groups

    trainable = (out.layers, out.proposals, out.denoising)
    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(trainable, features)


def test_padding_and_unannotated_classes_change_nothing(case):
    out, features, rows, assigned, points, config = case
    (want, _), want_grads = losses_and_grads(*case)
    noisy = rows.replace(
        boxes=jnp.where(rows.instance_valid[..., None], rows.boxes, 0.9),
        object_id=jnp.where(rows.instance_valid, rows.object_id, 1),
        part_id=jnp.where(rows.instance_valid, rows.part_id, 5),
        mask_bits=jnp.where(rows.instance_valid[..., None, None], rows.mask_bits, jnp.uint8(255)),
    )
    hidden = (~rows.vocab_valid).astype(jnp.float32)

    def shift(p, axes):
        expand = tuple(range(1, 1 + axes))
        return p.replace(
            object_logits=p.object_logits + 5.0 * jnp.expand_dims(hidden[:, :4], expand),
            part_logits=p.part_logits - 5.0 * jnp.expand_dims(hidden[:, 4:], expand),
        )

    layers = jax.vmap(lambda p: shift(p, 1))
    slots = out.denoising.replace(
        boxes=jnp.where(out.denoising_queries.valid[None, ..., None], out.denoising.boxes, 0.1)
    )
    changed = out.replace(
        layers=layers(out.layers), proposals=shift(out.proposals, 1), denoising=layers(slots)
    )
    (got, _), grads = losses_and_grads(
        changed, features, noisy, assigned + 3 * ~rows.instance_valid[:, None], points, config
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("with_slots", [True, False])
def test_instances_without_a_query_have_no_loss_but_count_in_the_means(with_slots):
    out, features, rows, _, points, config = make_case(1, q=2)
    if not with_slots:
        out = out.replace(denoising=None, denoising_queries=None)
    left_over = jnp.array([[[0, -1, 1, 0]] * 3, [[1, 0, 0, 0]] * 3], jnp.int32)
    (_, groups), grads = losses_and_grads(out, features, rows, left_over, points, config)
    # The original sums over the pairs and divides by all instances of the batch, here 3 + 2.
    fewer = rows.replace(instance_valid=rows.instance_valid.at[0, 1].set(False))
    (_, want), _ = losses_and_grads(out, features, fewer, left_over, points, config)
    for group in ("layers", "proposals"):
        for name in ("mask_bce", "dice", "l1", "giou"):
            np.testing.assert_allclose(groups[group][name], want[group][name] * 4 / 5, rtol=1e-5)
    # Where an instance of the row is left over, it must not pull at any query.
    moved = rows.replace(boxes=rows.boxes.at[0, 1].set(0.9))
    _, others = losses_and_grads(out, features, moved, left_over, points, config)
    np.testing.assert_array_equal(grads[0][0].boxes, others[0][0].boxes)
    np.testing.assert_array_equal(grads[0][1].boxes, others[0][1].boxes)
    if with_slots:
        assert np.any(np.asarray(grads[0][2].boxes != others[0][2].boxes))


def test_batch_is_the_weighted_mean_of_its_rows(case):
    out, features, rows, assigned, points, config = case
    (_, groups), _ = losses_and_grads(*case)
    total = jax.tree.map(jnp.zeros_like, groups)
    count = jax.tree.map(lambda _: 0.0, groups)
    for row in range(2):
        cut = slice(row, row + 1)

        def of_layers(tree, cut=cut):
            return jax.tree.map(lambda x: x[:, cut], tree)

        def of_rows(tree, cut=cut):
            return jax.tree.map(lambda x: x[cut], tree)

        one = GenericPredictions(
            of_layers(out.layers),
            of_rows(out.proposals),
            of_layers(out.denoising),
            of_rows(out.denoising_queries),
        )
        (_, own), _ = losses_and_grads(
            one, features[cut], of_rows(rows), assigned[cut], points[:, cut], config
        )
        for group in groups:
            for name in groups[group]:
                weight = [3, 2][row] if group != "denoising" else [3, 4][row]
                total[group][name] += own[group][name] * weight
                count[group][name] += weight
    for group, terms in groups.items():
        for name, value in terms.items():
            want = total[group][name] / count[group][name]
            np.testing.assert_allclose(value, want, rtol=1e-5, err_msg=f"{group} {name}")


def test_boxes_only_rows(case):
    out, features, rows, assigned, points, config = case
    boxes_only = rows.replace(has_masks=jnp.array([False, True]))
    (_, groups), grads = losses_and_grads(out, features, boxes_only, assigned, points, config)
    assert not np.any(np.asarray(grads[1][0]))
    assert np.any(np.asarray(grads[1][1]))
    assert np.all(np.asarray(groups["layers"]["mask_bce"]) > 0)
    costs = query_costs(out, features, boxes_only, points[0, :, 0], LossWeights())
    same = query_costs(out, features * 2, boxes_only, points[0, :, 0], LossWeights())
    np.testing.assert_array_equal(costs[0], same[0])
    assert np.any(np.asarray(costs[1] != same[1]))


def test_empty_rows_have_finite_gradients(case):
    out, features, rows, assigned, points, config = case
    empty = rows.replace(
        instance_valid=jnp.zeros_like(rows.instance_valid),
        boxes=jnp.zeros_like(rows.boxes),
        has_masks=jnp.zeros_like(rows.has_masks),
    )
    slots = out.denoising_queries.replace(valid=jnp.zeros((2, 5), bool))
    (value, groups), grads = losses_and_grads(
        out.replace(denoising_queries=slots), features, empty, assigned, points, config
    )
    assert np.isfinite(value)
    assert not np.any(np.asarray(groups["layers"]["l1"]))
    assert np.all(np.asarray(groups["layers"]["object_class"]) > 0)  # negatives still teach
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_without_denoising(case):
    out, features, rows, assigned, points, config = case
    groups = generic_losses(
        out.replace(denoising=None, denoising_queries=None),
        features,
        rows,
        assigned,
        points,
        config,
    )
    assert set(groups) == {"layers", "proposals"}
    (_, want), _ = losses_and_grads(*case)
    for name, value in groups["layers"].items():
        np.testing.assert_allclose(value, want["layers"][name], rtol=1e-5)


def test_class_costs_follow_labels_and_annotated_classes(case):
    out, features, rows, _, points, _ = case
    weights = LossWeights(mask_bce=0.0, dice=0.0, l1=0.0, giou=0.0)
    costs = query_costs(out, features, rows, points[0, :, 0], weights)
    for row in range(2):
        for instance in range(4):
            want = 0.0
            for ids, logits, first in (
                (rows.object_id, out.proposals.object_logits, 0),
                (rows.part_id, out.proposals.part_logits, 4),
            ):
                label = int(ids[row, instance])
                if label >= 0 and rows.vocab_valid[row, label]:
                    x = np.asarray(logits[row, :, label - first], np.float64)
                    p = 1 / (1 + np.exp(-x))
                    want += 4 * (-0.25 * (1 - p) ** 2 * np.log(p) + 0.75 * p**2 * np.log(1 - p))
            got = np.asarray(costs[row, -1, :, instance])
            np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), atol=1e-5)
