"""The interactive criterion against recorded numbers, and its invariances."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.core.errors import ShapeError
from semsam_jax.core.structs import Predictions
from semsam_jax.criterion.interactive import interactive_losses
from semsam_jax.criterion.points import PointPlan, Sampled, mask_terms
from semsam_jax.criterion.terms import CriterionConfig
from semsam_jax.criterion.total import weighted_sum
from semsam_jax.matching.solvers import solve_prompts
from tests.criterion import recorded
from tests.golden.table import golden

# Recorded suffix of each of our layers, and recorded name of each of our terms.
SUFFIX = {"aux0": 1, "aux1": 2, "final": 0}
NAMES = {
    "mask_bce": "loss_mask_bce",
    "dice": "loss_mask_dice",
    "iou": "iou_score_loss",
    "l1": "loss_bbox",
    "giou": "loss_giou",
}


def check_terms(terms, group):
    data = golden("criterion")
    for layer, name in enumerate(recorded.LAYERS):
        for ours, theirs in NAMES.items():
            want = data[f"{group}/loss_raw/{theirs}_{SUFFIX[name]}"]
            np.testing.assert_allclose(
                terms[ours][layer], want, rtol=1e-4, err_msg=f"{ours} {name}"
            )


def test_many_to_many_golden_with_gradients():
    data, config = golden("criterion"), recorded.released_config()
    predictions, features = recorded.interactive_predictions()
    rows, points = (
        recorded.interactive_rows(),
        recorded.many_to_many_points("m2m", recorded.recorded_assignment()),
    )

    @jax.jit
    def total(boxes, ious, features):
        own = predictions.replace(boxes=boxes, pred_ious=ious)
        terms = interactive_losses(
            own, features, rows, recorded.recorded_assignment(), points, config
        )
        return weighted_sum(terms, config.weights), terms

    (value, terms), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(
        predictions.boxes, predictions.pred_ious, features
    )
    check_terms(terms, "m2m")
    np.testing.assert_allclose(value, data["m2m/loss_total_weighted"], rtol=1e-4)
    boxes, ious, masks = grads
    masks = np.split(np.moveaxis(np.asarray(masks)[0], -1, 0), len(recorded.LAYERS))
    for layer, name in enumerate(recorded.LAYERS):
        got = {
            "pred_boxes": np.asarray(boxes)[layer].reshape(1, -1, 4),
            "pred_ious": np.asarray(ious)[layer],
            "pred_masks": masks[layer][None],
        }
        for key, gradient in got.items():
            want = data[f"m2m/grad/{name}/{key}"]
            error = np.abs(gradient - want).max() / np.abs(want).max()
            assert error < 1e-3, f"{name} {key}: {error}"


def test_many_to_one_golden():
    config = recorded.released_config(many_to_one=True)
    predictions, features = recorded.interactive_predictions()
    terms = jax.jit(
        lambda p: interactive_losses(
            p,
            features,
            recorded.interactive_rows(True),
            None,
            recorded.many_to_one_points(),
            config,
        )
    )(predictions)
    check_terms(terms, "mo1")
    total = weighted_sum(terms, config.weights)
    np.testing.assert_allclose(total, golden("criterion")["mo1/loss_total_weighted"], rtol=1e-4)


def test_detached_target_keeps_the_value_and_stops_the_gradient():
    predictions, features = recorded.interactive_predictions()
    points = recorded.many_to_many_points("m2m", recorded.recorded_assignment())

    def iou_loss(features, detach):
        config = recorded.released_config()
        config = type(config)(num_points=config.num_points, detach_iou_target=detach)
        return interactive_losses(
            predictions,
            features,
            recorded.interactive_rows(),
            recorded.recorded_assignment(),
            points,
            config,
        )["iou"].sum()

    grad = jax.jit(jax.value_and_grad(iou_loss), static_argnums=1)
    (value, gradient), (free, free_gradient) = grad(features, True), grad(features, False)
    np.testing.assert_allclose(value, free, rtol=1e-6)
    assert not np.any(np.asarray(gradient))
    assert np.any(np.asarray(free_gradient))


@pytest.fixture(scope="module")
def labelled():
    """Random labelled rows of two images with shared points: everything but recorded."""
    return make_case(0)


def make_case(seed, b=2, n=5, p=3, t=2, k=3, objects=4, parts=3, d=8, layers=2):
    rng = np.random.default_rng(seed)

    def uniform(*shape, low=0.0, high=1.0):
        return jnp.asarray(rng.uniform(low, high, shape).astype(np.float32))

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape).astype(np.float32))

    masks = np.asarray(uniform(n, 32, 48) > 0.5)
    boxes = np.asarray(uniform(n, 4, low=0.2, high=0.6))
    rows = recorded.make_rows(
        masks, boxes, np.array([[0, 1], [2, -1], [4, 3]], np.int32), num_classes=objects + parts
    )
    rows = jax.tree.map(lambda x: jnp.concatenate([x] * b), rows)
    rows = rows.replace(
        object_id=jnp.array([[0, 1, 3, -1, 2], [2, 2, -1, -1, 0]]),
        part_id=jnp.array([[-1, 5, -1, -1, 6], [4, -1, -1, 5, -1]]),
        vocab_valid=uniform(b, objects + parts) > 0.2,
    )
    shape = (layers, b, p, k)
    predictions = Predictions(
        mask_embed=normal(*shape, d),
        boxes=uniform(*shape, 4, low=0.2, high=0.7),
        pred_ious=uniform(*shape),
        object_logits=normal(*shape, objects),
        part_logits=normal(*shape, parts),
    )
    features = normal(b, 8, 12, d)
    config = CriterionConfig(num_points=32)
    points = config.plan.draw(jax.random.key(seed), b)
    token = jnp.array([[[0, 2], [1, 0], [2, 1]], [[1, 0], [2, 0], [0, 2]]], jnp.int32)
    return predictions, features, rows, token, points, config


@functools.partial(jax.jit, static_argnames="config")
def grad_and_terms(predictions, features, rows, token, points, config):
    def total(predictions, features):
        terms = interactive_losses(predictions, features, rows, token, points, config)
        return weighted_sum(terms, config.weights), terms

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(predictions, features)


def test_padding_changes_nothing(labelled):
    predictions, features, rows, token, points, config = labelled
    (want, _), want_grads = grad_and_terms(*labelled)

    def pad(x, axis, count, value):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, count)
        return jnp.pad(x, widths, constant_values=value)

    more = rows.replace(
        mask_bits=pad(rows.mask_bits, 1, 2, 255),
        boxes=pad(rows.boxes, 1, 2, 0.0),
        object_id=pad(rows.object_id, 1, 2, -1),
        part_id=pad(rows.part_id, 1, 2, -1),
        instance_valid=pad(rows.instance_valid, 1, 2, False),
        prompt_box=pad(rows.prompt_box, 1, 2, 0.0),
        prompt_is_box=pad(rows.prompt_is_box, 1, 2, False),
        prompt_valid=pad(rows.prompt_valid, 1, 2, False),
        prompt_targets=pad(pad(rows.prompt_targets, 1, 2, 0), 2, 1, -1),
    )
    wide = jax.tree.map(lambda x: pad(x, 2, 2, 0.3), predictions)
    (got, _), grads = grad_and_terms(
        wide, features, more, pad(pad(token, 1, 2, 0), 2, 1, 0), points, config
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for name in ("mask_embed", "boxes", "pred_ious", "object_logits", "part_logits"):
        own = np.asarray(getattr(grads[0], name))
        np.testing.assert_allclose(own[:, :, :3], getattr(want_grads[0], name), atol=1e-6)
        assert not own[:, :, 3:].any()
    np.testing.assert_allclose(grads[1], want_grads[1], atol=1e-6)


def test_unannotated_classes_change_nothing(labelled):
    predictions, features, rows, token, points, config = labelled
    (want, _), _ = grad_and_terms(*labelled)
    hidden = ~rows.vocab_valid[:, :4]
    shifted = predictions.replace(
        object_logits=predictions.object_logits + 7.0 * hidden[None, :, None, None, :]
    )
    (got, _), _ = grad_and_terms(shifted, features, rows, token, points, config)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_batch_is_the_weighted_mean_of_its_rows(labelled):
    predictions, features, rows, token, points, config = labelled
    (_, terms), _ = grad_and_terms(*labelled)
    sums = {name: 0.0 for name in terms}
    counts = {name: 0.0 for name in terms}
    for row in range(2):
        cut = slice(row, row + 1)
        one = jax.tree.map(lambda x, c=cut: x[c], rows)
        (_, own), _ = grad_and_terms(
            jax.tree.map(lambda x, c=cut: x[:, c], predictions),
            features[cut],
            one,
            token[cut],
            points[:, cut],
            config,
        )
        weight = count_pairs(one)
        for name in terms:
            sums[name] += own[name] * weight[name]
            counts[name] += weight[name]
    for name in terms:
        np.testing.assert_allclose(terms[name], sums[name] / counts[name], rtol=1e-5, err_msg=name)


def count_pairs(rows):
    """Pairs behind each term, by plain loops."""
    count = dict.fromkeys(
        ("mask_bce", "dice", "iou", "l1", "giou", "object_class", "part_class"), 0
    )
    valid = np.asarray(rows.vocab_valid[0])
    for target in np.asarray(rows.prompt_targets).ravel():
        if target < 0:
            continue
        for name in ("mask_bce", "dice", "iou", "l1", "giou"):
            count[name] += 1
        for name, ids in (("object_class", rows.object_id), ("part_class", rows.part_id)):
            label = int(ids[0, target])
            count[name] += int(label >= 0 and valid[label])
    return count


def test_rows_without_masks_get_no_mask_terms(labelled):
    predictions, features, rows, token, points, config = labelled
    (_, terms), grads = grad_and_terms(
        predictions, features, rows.replace(has_masks=jnp.zeros(2, bool)), token, points, config
    )
    for name in ("mask_bce", "dice", "iou"):
        assert not np.any(np.asarray(terms[name]))
    assert np.all(np.asarray(terms["l1"]) > 0)
    assert not np.any(np.asarray(grads[1]))


def test_empty_rows_have_zero_loss_and_finite_gradients(labelled):
    predictions, features, rows, token, points, config = labelled
    empty = rows.replace(
        prompt_targets=jnp.full_like(rows.prompt_targets, -1),
        prompt_valid=jnp.zeros_like(rows.prompt_valid),
        boxes=jnp.zeros_like(rows.boxes),
        vocab_valid=jnp.zeros_like(rows.vocab_valid),
    )
    (value, _), grads = grad_and_terms(predictions, features, empty, token, points, config)
    assert value == 0
    assert all(np.isfinite(x).all() and not np.any(np.asarray(x)) for x in jax.tree.leaves(grads))


def test_shared_points_equal_the_same_points_for_every_pair(labelled):
    predictions, features, rows, token, points, config = labelled
    (want, _), _ = grad_and_terms(*labelled)
    spread = jnp.broadcast_to(points, (2, 2, 6, *points.shape[3:]))
    (got, _), _ = grad_and_terms(predictions, features, rows, token, spread, config)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_settings_that_contradict_each_other():
    predictions, features, rows, token, points, config = make_case(1)
    single = CriterionConfig(num_points=32, many_to_one=True)
    with pytest.raises(ShapeError, match="many-to-many only"):
        interactive_losses(predictions, features, rows, token, points, single)
    with pytest.raises(ShapeError, match="max_targets=1"):
        interactive_losses(predictions, features, rows, None, points, single)
    with pytest.raises(ShapeError, match="missing"):
        interactive_losses(predictions, features, rows, None, points, config)


def test_recorded_assignment_is_the_solvers():
    data = golden("criterion")
    counts = data["tgt/level_target_counts"]
    costs = np.full((1, len(counts), 6, 6), 3.0, np.float32)
    start = 0
    for prompt, count in enumerate(counts):
        block = data["m2m/cost_total_D"][prompt * 6 : prompt * 6 + 6, start : start + count]
        costs[0, prompt, :, :count] = block
        start += count
    valid = (np.arange(6)[None] < counts[:, None])[None]
    answer, nonfinite = solve_prompts(costs, valid)
    np.testing.assert_array_equal(answer, recorded.recorded_assignment())
    assert nonfinite.tolist() == [0]


def test_every_token_may_learn_its_iou_with_the_best_target(labelled):
    """The target of each token is the largest IoU over the prompt's own targets, by counting.

    A cell of the features covers 4 x 4 pixels; its centre is the corner of the inner four.
    """
    predictions, features, rows, token, points, config = labelled
    rows = rows.replace(size_hw=jnp.array([[32, 48], [20, 34]]))
    pixels = np.unpackbits(np.asarray(rows.mask_bits), axis=-1).reshape(2, 5, 8, 4, 12, 4)
    truth = pixels[:, :, :, 1:3, :, 1:3].mean((3, 5)) >= 0.5
    pixels[:, :, :, 1:3, :, 1:3] |= truth[:, :, :, None, :, None]  # no ties
    rows = rows.replace(mask_bits=jnp.asarray(np.packbits(pixels.reshape(2, 5, 32, 48), axis=-1)))
    truth[1, :, 5:], truth[1, :, :, 8:] = False, False
    in_image = np.ones((2, 8, 12), bool)
    in_image[1, 5:], in_image[1, :, 8:] = False, False
    # A limit that leaves the middle of the canvas: cells outside count as empty.
    limits = np.broadcast_to(
        np.float32([0.25, 0.25, 0.75, 0.75]), (*predictions.boxes.shape[:-1], 4)
    )
    within = np.zeros((8, 12), bool)
    within[2:6, 3:9] = True
    cases = [("best", None), ("expected", None), ("expected", limits)]
    for kind, limit in cases:
        scoring = dataclasses.replace(config, score_all_tokens=True, iou_target=kind)
        limited = predictions.replace(mask_limits=None if limit is None else jnp.asarray(limit))
        (_, terms), grads = grad_and_terms(limited, features, rows, token, points, scoring)
        errors = []
        for image, prompt in np.ndindex(2, 3):
            wanted = [i for i in np.asarray(rows.prompt_targets)[image, prompt] if i >= 0]
            for k in range(3):
                embed = np.asarray(predictions.mask_embed)[-1, image, prompt, k]
                mask = (np.asarray(features)[image] @ embed > 0) & in_image[image]
                mask &= within if limit is not None else True
                ious = [
                    (truth[image, i] & mask).sum() / (truth[image, i] | mask).sum() for i in wanted
                ]
                shares = [1 / max(truth[image, i].sum(), 4) for i in wanted]
                fit = max(ious, default=0.0)
                if kind == "expected":
                    fit = np.average(ious, weights=shares) if wanted else 0.0
                guess = float(predictions.pred_ious[-1, image, prompt, k])
                errors.append((guess - fit) ** 2)
        np.testing.assert_allclose(terms["iou"][-1], np.mean(errors), rtol=1e-4)
        assert np.all(np.asarray(grads[0].pred_ious) != 0)
    scoring = dataclasses.replace(config, score_all_tokens=True)
    (_, terms), _ = grad_and_terms(predictions, features, rows, token, points, scoring)
    (_, others), _ = grad_and_terms(predictions, features, rows, token, points, config)
    for name in ("mask_bce", "dice", "l1", "giou", "object_class", "part_class"):
        np.testing.assert_array_equal(terms[name], others[name])


def test_the_predicted_iou_of_the_last_layer_alone_may_be_taught(labelled):
    predictions, features, rows, token, points, config = labelled
    every = dataclasses.replace(config, score_all_tokens=True, iou_target="expected")
    last = dataclasses.replace(every, iou_every_layer=False)
    (_, want), _ = grad_and_terms(predictions, features, rows, token, points, every)
    (_, terms), grads = grad_and_terms(predictions, features, rows, token, points, last)
    np.testing.assert_allclose(terms["iou"][-1], want["iou"][-1], rtol=1e-6)
    assert not np.any(np.asarray(terms["iou"][:-1]))
    assert np.all(np.asarray(grads[0].pred_ious[-1]) != 0)
    assert not np.any(np.asarray(grads[0].pred_ious[:-1]))


def test_scoring_every_token_is_not_for_one_target_per_prompt(labelled):
    predictions, features, rows, _, points, config = labelled
    config = dataclasses.replace(config, score_all_tokens=True, many_to_one=True)
    with pytest.raises(ShapeError, match="score_all_tokens"):
        interactive_losses(predictions, features, rows, None, points, config)


def test_masks_are_empty_outside_their_limits_in_the_losses():
    """Points inside alone decide: outside, the logit is -10 whatever the embedding says."""
    rng = np.random.default_rng(0)
    embed = jnp.asarray(rng.normal(size=(1, 2, 4)), jnp.float32)
    features = jnp.asarray(rng.normal(size=(1, 1, 6, 4)), jnp.float32)
    places = np.float32([[0.1, 0.5], [0.4, 0.5], [0.6, 0.4], [0.9, 0.9], [0.5, 0.1], [0.5, 0.5]])
    truth = jnp.asarray([[[0, 1, 1, 0, 0, 1], [0, 1, 1, 1, 0, 1]]], jnp.float32)
    sampled = Sampled(jnp.asarray(places)[None, None], features, truth)
    limits = jnp.asarray([[[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 1.0, 1.0]]])
    plan = PointPlan(num_candidates=0, num_chosen=0, num_fresh=6)
    got = mask_terms(embed, sampled, plan, limits)["mask_bce"]
    logits = np.einsum("id,jd->ij", embed[0], features[0, 0])
    logits[0, [0, 3, 4]] = -10
    want = np.logaddexp(0, logits) - logits * np.asarray(truth[0])
    np.testing.assert_allclose(got[0], want.mean(-1), rtol=1e-5)
