"""Which instances a row's prompts go to, and what they have to find."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.schema import RawExample
from data_pipelines.transforms import geometry
from tests.data_pipelines.fake_source import HANDLE, MUG, ellipse, encode_image, mask_instance
from tests.data_pipelines.test_transforms import SHAPE, check_row, make_rows


def test_labelled_clicks_have_one_target_unless_hierarchy_is_asked_for():
    whole = ellipse(60, 60, 30, 30, 25, 25)
    part = ellipse(60, 60, 30, 30, 8, 8)
    example = RawExample(
        "paco",
        "mug",
        encode_image(np.zeros((60, 60, 3), np.uint8)),
        60,
        60,
        (
            mask_instance(whole, object_id=MUG),
            mask_instance(part, object_id=MUG, part_id=HANDLE, parent=0),
        ),
    )
    still = geometry.Augment(flip=0.0)
    one = make_rows(still)((example, "any"), np.random.default_rng(0))
    assert ((one["prompt_targets"] >= 0).sum(1) == 1).all()
    both = make_rows(still, hierarchy=True)((example, "part"), np.random.default_rng(0))
    clicks = ~both["prompt_is_box"]
    assert ((both["prompt_targets"][clicks] >= 0).sum(1) == 2).all()
    assert both["prompt_is_box"].sum() == 3  # a quarter of 12
    parts = make_rows(still)((example, "part"), np.random.default_rng(0))
    assert (parts["part_id"][parts["prompt_targets"][:, 0]] == HANDLE).all()
    objects = make_rows(still)((example, "object"), np.random.default_rng(0))
    assert (objects["part_id"][objects["prompt_targets"][:, 0]] == -1).all()


def test_the_clicked_instance_stays_when_too_many_lie_under_the_click():
    nested = [ellipse(64, 64, 32, 32, r, r) for r in range(3, 30, 3)]
    instances = tuple(mask_instance(mask) for mask in nested)
    image = encode_image(np.zeros((64, 64, 3), np.uint8))
    example = RawExample("sa1b", "onion", image, 64, 64, instances)
    still = geometry.Augment(flip=0.0)
    for seed in range(10):
        made = make_rows(still, box_share=0.0)((example, "any"), np.random.default_rng(seed))
        check_row(made, SHAPE, "sa1b")
        order = np.argsort(made["boxes"][:, 2])  # nested: rings in order of their size
        assert made["instance_valid"].all()
        assert (made["prompt_targets"] >= 0).sum(1).max() <= SHAPE.max_targets
        assert len(set(made["prompt_targets"][:, 0].tolist())) > 1, order


def test_small_masks_get_their_share():
    large = [ellipse(64, 64, 32, 32, 28 + k / 4, 30) for k in range(9)]
    small = [ellipse(64, 64, 10, 10, 2, 2)]
    image = encode_image(np.zeros((64, 64, 3), np.uint8))
    example = RawExample(
        "coco", "x", image, 64, 64, tuple(mask_instance(m, object_id=0) for m in large + small)
    )
    shape = dataclasses.replace(SHAPE, num_prompts=200, max_instances=10)
    still = geometry.Augment(flip=0.0)

    def share(balance):
        maker = make_rows(still, shape, granularity_balance=balance)
        made = maker((example, "any"), np.random.default_rng(0))
        return np.mean(made["prompt_targets"][:, 0] == 9)

    assert share(0.0) == pytest.approx(0.1)
    assert share(1.0) > 0.3


STILL = geometry.Augment(flip=0.0)
BLACK = encode_image(np.zeros((64, 64, 3), np.uint8))


def test_prompts_are_divided_among_the_kinds_of_instances():
    """One object, six parts and two masks without a class, side by side."""
    masks = np.zeros((9, 64, 64), bool)
    for number, mask in enumerate(masks):
        mask[7 * number : 7 * number + 7] = True
    labels = [{"object_id": MUG}]
    labels += [{"object_id": MUG, "part_id": HANDLE, "parent": 0}] * 5
    labels += [{"parent": 0}, {}, {}]  # a part that has no class is a part, too
    instances = tuple(
        mask_instance(mask, **label) for mask, label in zip(masks, labels, strict=True)
    )
    kinds = [instance.kind for instance in instances]
    assert kinds == ["object"] + ["part"] * 6 + ["agnostic"] * 2
    example = RawExample("paco", "mug", BLACK, 64, 64, instances)
    shape = dataclasses.replace(SHAPE, num_prompts=36, max_instances=9)

    def counts(shares, view="any"):
        made = make_rows(STILL, shape, shares=shares)((example, view), np.random.default_rng(3))
        check_row(made, shape, "paco")
        order = np.argsort(made["boxes"][:, 1])  # top to bottom, as written
        assert order.tolist() == list(range(9))
        per_instance = np.bincount(made["prompt_targets"][:, 0], minlength=9)
        boxes = made["prompt_targets"][made["prompt_is_box"], 0]
        assert len(set(boxes.tolist())) > 1  # not all boxes for the kind that comes last
        return per_instance[0], per_instance[1:7].sum(), per_instance[7:].sum()

    assert counts({}) == (4, 24, 8)  # evenly over instances
    assert counts({"object": 2.0, "part": 1.0, "agnostic": 1.0}) == (18, 9, 9)
    assert counts({"object": 1.0, "part": 1.0}) == (18, 18, 0)
    assert counts({"object": 1.0, "part": 1.0}, view="part") == (0, 36, 0)
    assert sum(counts({"object": 1.0}, view="part")) == 36  # none of its kinds: evenly


def test_a_part_keeps_its_wholes_among_the_targets():
    """A finger, hand and arm of a person below many other things; three targets fit."""
    person = mask_instance(ellipse(64, 64, 32, 32, 30, 30), object_id=MUG)
    arm = mask_instance(ellipse(64, 64, 32, 32, 20, 20), object_id=MUG, part_id=HANDLE, parent=0)
    hand = mask_instance(ellipse(64, 64, 32, 32, 10, 10), parent=1)
    cover = [mask_instance(np.ones((64, 64), bool), object_id=MUG) for _ in range(3)]
    elsewhere = np.zeros((64, 64), bool)
    elsewhere[:2, :2] = True
    lost = mask_instance(ellipse(64, 64, 32, 32, 3, 3), parent=7)  # its whole is not there
    instances = (person, arm, hand, *cover, lost, mask_instance(elsewhere, object_id=MUG))
    example = RawExample("paco", "crowded", BLACK, 64, 64, instances)
    shape = dataclasses.replace(SHAPE, max_instances=8, max_targets=3, num_prompts=40)
    maker = make_rows(STILL, shape, hierarchy=True, box_share=0.0)
    made = maker((example, "part"), np.random.default_rng(0))
    check_row(made, shape, "paco")
    sets = {tuple(sorted(row.tolist())) for row in made["prompt_targets"]}
    assert (0, 1, 2) in sets  # hand, arm, person
    for targets in sets:
        assert 6 in targets or {0, 1} <= set(targets)  # whatever part it was: its wholes are in
    tight = dataclasses.replace(shape, max_instances=3, num_prompts=1)
    for seed in range(8):  # where instances do not all fit, the wholes stay
        maker = make_rows(STILL, tight, hierarchy=True, box_share=0.0)
        made = maker((example, "part"), np.random.default_rng(seed))
        targets = made["boxes"][made["prompt_targets"][0], 2] * 64
        assert 61 in np.round(targets) or 7 in np.round(targets)


def test_center_clicks_lie_farthest_from_the_outline():
    """Of a square with a thin arm the centre of the square, away from the canvas' border."""
    mask = np.zeros((64, 64), bool)
    mask[20:41, 24:45] = True
    mask[30, 45:64] = True
    example = RawExample(
        "sa1b",
        "square",
        encode_image(np.zeros((64, 64, 3), np.uint8)),
        64,
        64,
        (mask_instance(mask),),
    )
    still = geometry.Augment(flip=0.0)
    row = make_rows(still, box_share=0.0, center_clicks=1.0)(
        (example, "any"), np.random.default_rng(0)
    )
    scale = SHAPE.image_size / 64
    clicks = row["prompt_box"][row["prompt_valid"]][:, :2] * SHAPE.image_size
    assert np.abs(clicks - scale * np.float32([34.5, 30.5])).max() <= scale
    rows = make_rows(still, box_share=0.0, center_clicks=0.5)
    drawn = rows((example, "any"), np.random.default_rng(0))["prompt_box"][:, :2]
    is_center = np.isclose(drawn, row["prompt_box"][:1, :2]).all(-1)
    assert 0 < is_center.sum() < len(drawn)
