"""Requested granularities, and the loss of the answers, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from semsam_jax.core.structs import Predictions
from semsam_jax.criterion.granularity_loss import (
    RequestedGranularities as Requested,
)
from semsam_jax.criterion.granularity_loss import (
    chain_places,
    granularity_losses,
)
from semsam_jax.criterion.granularity_loss import (
    request_granularities as request,
)
from semsam_jax.criterion.terms import CriterionConfig
from tests.criterion.recorded import make_rows

HW = (16, 64)


def strips():
    """Rows of one image: strips of 4, 16 and 36 columns from the left, prompts in 3, 2 and 1."""
    masks = np.zeros((3, *HW), bool)
    for mask, columns in zip(masks, (4, 16, 36), strict=True):
        mask[:, :columns] = True
    boxes = np.array([[c / 128, 0.5, c / 64, 1.0] for c in (4, 16, 36)], np.float32)
    targets = np.array([[0, 1, 2], [1, 2, -1], [2, -1, -1]])
    return make_rows(masks, boxes, targets)


def test_the_place_of_a_mask_in_its_chain():
    places = np.asarray(chain_places(strips()))[0]
    # Roots of the areas are as 2 : 4 : 6.
    np.testing.assert_allclose(places[0], [0.0, 0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(places[1, :2], [0.0, 1.0], atol=1e-6)
    assert np.isnan(places[2]).all()  # alone
    assert np.isnan(places[1, 2])


def test_two_different_masks_are_requested_about_where_they_are():
    rows = strips()
    seen = set()
    for seed in range(20):
        requested = request(rows, jax.random.key(seed))
        instance = np.asarray(requested.instance)[0]
        seen.add(tuple(instance[0]))
        assert sorted(instance[1].tolist()) == [1, 2]
        assert instance[2].tolist() == [-1, -1]
        place = {0: 0.0, 1: 0.5, 2: 1.0}
        for i, value in zip(instance[0], np.asarray(requested.granularity)[0, 0], strict=True):
            assert abs(value - place[i]) < 0.25
    assert seen == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_two_answers_are_requested_where_a_prompt_has_one_target_at_most():
    rows = strips()
    rows = rows.replace(
        prompt_targets=rows.prompt_targets[..., :1], pseudo_targets=rows.pseudo_targets[..., :1]
    )
    requested = request(rows, jax.random.key(0))
    assert requested.granularity.shape == requested.instance.shape == (1, 3, 2)
    assert (np.asarray(requested.instance) == -1).all()


def test_for_a_box_any_is_requested_and_for_rows_without_masks_none():
    rows = strips()
    boxed = rows.replace(prompt_is_box=jnp.ones_like(rows.prompt_is_box))
    assert np.asarray(request(boxed, jax.random.key(0)).instance)[0, 2].tolist() == [2, -1]
    values = [np.asarray(request(boxed, jax.random.key(i)).granularity)[0, 2, 0] for i in range(40)]
    assert min(values) < 0.2
    assert max(values) > 0.8
    unmasked = rows.replace(has_masks=jnp.zeros(1, bool))
    assert (np.asarray(request(unmasked, jax.random.key(0)).instance) == -1).all()
    invalid = rows.replace(prompt_valid=jnp.array([[True, False, True]]))
    assert (np.asarray(request(invalid, jax.random.key(0)).instance)[0, 1] == -1).all()


def test_pseudo_targets_complete_a_chain():
    """The third click has the largest mask alone; the two smaller ones become parts of it."""
    rows = strips()
    rows = rows.replace(pseudo_targets=rows.pseudo_targets.at[0, 2].set(jnp.array([-1, 1, 0])))
    seen = {}
    for seed in range(20):
        requested = request(rows, jax.random.key(seed))
        own = (np.asarray(values)[0, 2] for values in (requested.instance, requested.granularity))
        for instance, value in zip(*own, strict=True):
            seen.setdefault(int(instance), []).append(value)
    assert seen.keys() == {0, 1, 2}
    means = [np.mean(seen[instance]) for instance in range(3)]
    np.testing.assert_allclose(means, [0.0, 0.5, 1.0], atol=0.06)
    for name in ("instance", "granularity"):  # requests of other clicks do not change
        plain = getattr(request(strips(), jax.random.key(0)), name)[:, :2]
        np.testing.assert_array_equal(getattr(request(rows, jax.random.key(0)), name)[:, :2], plain)


def test_losses_of_right_and_wrong_answers():
    """Answers are whole columns of the map: 16, then 36 columns, each meant for 16 columns."""
    rows = strips()
    h, w = HW[0] // 4, HW[1] // 4
    columns = jnp.arange(w)
    maps = jnp.stack([jnp.where(columns < c, 20.0, -20.0) for c in (4, 9)], axis=-1)
    features = jnp.broadcast_to(maps[None, None], (1, h, w, 2))
    one = Predictions(
        mask_embed=jnp.eye(2)[None, None, None],
        boxes=jnp.array([[0.125, 0.5, 0.25, 1.0], [0.375, 0.5, 0.25, 1.0]])[None, None, None],
        pred_ious=jnp.array([0.7, 0.7])[None, None, None],
    )
    layers = jax.tree.map(lambda x: jnp.concatenate([x, x]), one)
    rows = rows.replace(
        **{name: getattr(rows, name)[:, :1] for name in ("prompt_box", "prompt_is_box")},
        prompt_valid=rows.prompt_valid[:, :1],
        prompt_targets=rows.prompt_targets[:, :1],
    )
    config = CriterionConfig(num_points=512, match_points=512)
    points = config.plan.draw(jax.random.key(0), 1)
    requested = Requested(granularity=jnp.full((1, 1, 2), 0.5), instance=jnp.array([[[1, -1]]]))
    right = granularity_losses(layers, features, rows, requested, points, config)
    assert right["mask_bce"].shape == (2,)
    assert float(right["l1"][0]) < 1e-6
    assert float(right["dice"][1]) < 0.1
    # The last layer alone learns the IoU, which is 1.
    np.testing.assert_allclose(right["iou"], [0.0, 0.3**2], atol=1e-6)
    requested = requested.replace(instance=jnp.array([[[-1, 1]]]))
    wrong = granularity_losses(layers, features, rows, requested, points, config)
    np.testing.assert_allclose(wrong["iou"], [0.0, (0.7 - 4 / 9) ** 2], atol=1e-6)
    np.testing.assert_allclose(wrong["l1"], 0.25, atol=1e-6)
    assert float(wrong["mask_bce"][1]) > 10 * float(right["mask_bce"][1])
    nothing = requested.replace(instance=jnp.full((1, 1, 2), -1))
    terms = granularity_losses(layers, features, rows, nothing, points, config)
    assert all(not np.any(values) for name, values in terms.items() if name != "nesting")


def test_a_small_answer_lies_inside_a_large_one():
    """Answers of 4 and 9 of 16 columns: nested one way, five ninths outside the other way."""
    rows = strips()
    rows = rows.replace(
        **{name: getattr(rows, name)[:, :1] for name in ("prompt_box", "prompt_is_box")},
        prompt_valid=rows.prompt_valid[:, :1],
        prompt_targets=rows.prompt_targets[:, :1],
    )
    h, w = HW[0] // 4, HW[1] // 4
    maps = jnp.stack([jnp.where(jnp.arange(w) < c, 20.0, -20.0) for c in (4, 9)], axis=-1)
    features = jnp.broadcast_to(maps[None, None], (1, h, w, 2))
    layer = Predictions(
        mask_embed=jnp.eye(2)[None, None, None],
        boxes=jnp.full((1, 1, 1, 2, 4), 0.5),
        pred_ious=jnp.zeros((1, 1, 1, 2)),
    )
    config = CriterionConfig(num_points=4096, match_points=512)
    points = config.plan.draw(jax.random.key(0), 1)
    found = []
    for wanted in ((0.2, 0.7), (0.7, 0.2)):
        requested = Requested(jnp.array([[wanted]]), jnp.full((1, 1, 2), -1))
        found.append(
            float(
                granularity_losses(layer, features, rows, requested, points, config)["nesting"][0]
            )
        )
    np.testing.assert_allclose(found, [0.0, 5 / 9], atol=0.02)
    boxed = rows.replace(prompt_is_box=jnp.ones((1, 1), bool))
    requested = Requested(jnp.array([[(0.7, 0.2)]]), jnp.full((1, 1, 2), -1))
    assert not np.any(
        granularity_losses(layer, features, boxed, requested, points, config)["nesting"]
    )
