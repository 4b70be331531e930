"""Pseudo targets of rows: which clicks get them, and what they leave as it was."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.mixture import Mixture
from data_pipelines.pipeline import make_iterator
from data_pipelines.schema import RawExample
from data_pipelines.transforms import geometry
from data_pipelines.transforms.masks import unpack_bits
from data_pipelines.transforms.prompts import PromptPolicy
from data_pipelines.transforms.pseudo_parts import MIN_AREA_PX
from tests.data_pipelines.fake_source import VOCABULARY, FakeSource, encode_image, mask_instance
from tests.data_pipelines.test_pipeline import CONFIG
from tests.data_pipelines.test_regions import BLUE, RED, disc, picture
from tests.data_pipelines.test_transforms import SHAPE as USUAL
from tests.data_pipelines.test_transforms import check_row, make_rows

STILL = geometry.Augment(flip=0.0)
SIDE = 64
SHAPE = dataclasses.replace(USUAL, num_prompts=40)


def target(number=0, *masks):
    """A red disc with a blue one inside on green, and the masks that people drew."""
    image = picture(SIDE, (16, RED), (8, BLUE), noise=2.0)
    masks = masks or (disc(SIDE, 28),)
    instances = tuple(mask_instance(mask) for mask in masks)
    return RawExample("sa1b", f"target{number}", encode_image(image, "PNG"), SIDE, SIDE, instances)


def made(example, seed=0, shape=SHAPE, **policy):
    return make_rows(STILL, shape, **policy)((example, "any"), np.random.default_rng(seed))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_click_in_one_mask_gets_the_parts_that_it_sees(stride):
    shape = dataclasses.replace(SHAPE, mask_stride=stride)
    row = made(target(), shape=shape, pseudo_hierarchy=1.0)
    bits = unpack_bits(row["mask_bits"])
    assert row["instance_valid"].tolist() == [True] + [False] * 5
    pseudo = row["pseudo_targets"]
    assert (pseudo[row["prompt_is_box"]] == -1).all()
    assert (pseudo[:, 0] == -1).all()  # the slot of the mask that people drew
    found = 0
    for box, targets in zip(row["prompt_box"], pseudo, strict=True):
        x, y = np.rint(box[:2] * SIDE).astype(int) // stride
        outer = bits[0]
        for slot in targets[targets >= 0]:
            found += 1
            part = bits[slot].astype(bool)
            assert part[y, x]
            assert not (part & ~outer).any()
            assert part.sum() * stride**2 >= MIN_AREA_PX
            rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
            low, high = row["boxes"][slot, :2] * SIDE, row["boxes"][slot, 2:] * SIDE
            ends = np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]]) * stride
            np.testing.assert_allclose([low - high / 2, low + high / 2], ends, atol=1e-4)
            outer = part
    assert found > 4 // stride
    areas = {int(bits[slot].sum()) * stride**2 for slot in np.unique(pseudo[pseudo >= 0])}
    discs = [disc(SIDE, radius).sum() for radius in (16, 8)[: 3 - stride]]  # the blue one is small
    assert all(min(abs(area / wanted - 1) for area in areas) < 0.25 for wanted in discs)


def test_everything_else_is_as_without_them():
    for seed in range(3):
        with_parts = made(target(), seed, pseudo_hierarchy=0.5)
        without = made(target(), seed)
        check_row(without, SHAPE, "sa1b")
        assert (without["pseudo_targets"] == -1).all()
        for key, values in without.items():
            if key != "pseudo_targets":
                labelled = with_parts[key][:1] if key in ("mask_bits", "boxes") else with_parts[key]
                wanted = values[:1] if key in ("mask_bits", "boxes") else values
                np.testing.assert_array_equal(labelled, wanted, err_msg=key)
        has_parts = (with_parts["pseudo_targets"] >= 0).any(1)
        could = (made(target(), seed, pseudo_hierarchy=1.0)["pseudo_targets"] >= 0).any(1)
        assert 0 < has_parts.sum() < could.sum()


def test_clicks_with_two_masks_and_full_rows_get_none():
    nested = target(0, disc(SIDE, 28), disc(SIDE, 26))
    row = made(nested, box_share=0.0, pseudo_hierarchy=1.0)
    is_alone = (row["prompt_targets"] >= 0).sum(1) == 1
    assert not is_alone.all()
    assert (row["pseudo_targets"][~is_alone] == -1).all()
    # Labelled data may give a click one target among the masks under it, which is no whole.
    apart = dataclasses.replace(
        nested,
        dataset="coco",
        instances=tuple(dataclasses.replace(one, object_id=0) for one in nested.instances),
    )
    row = made(apart, box_share=0.0, pseudo_hierarchy=1.0)
    assert ((row["prompt_targets"] >= 0).sum(1) == 1).all()
    small = int(np.argmin(unpack_bits(row["mask_bits"])[:2].sum((1, 2))))
    assert (row["pseudo_targets"][row["prompt_targets"][:, 0] == small] == -1).all()
    for changes in ({"max_instances": 1}, {"max_targets": 1}):
        shape = dataclasses.replace(SHAPE, **changes)
        row = made(target(), shape=shape, pseudo_hierarchy=1.0)
        assert (row["pseudo_targets"] == -1).all()


def test_parts_do_not_cut_what_people_drew_in_the_same_mask():
    """Half of the red disc is a mask of its own: a click beside it gets parts without it."""
    half = disc(SIDE, 16) & (np.arange(SIDE) >= 36)
    row = made(target(0, disc(SIDE, 28), half), box_share=0.0, pseudo_hierarchy=1.0)
    bits = unpack_bits(row["mask_bits"])
    wholes = row["prompt_targets"][:, 0]
    order = np.argsort(bits[:2].sum((1, 2)))
    outside = (wholes == order[1]) & (row["prompt_targets"][:, 1] < 0)
    slots = row["pseudo_targets"][outside]
    assert (slots >= 0).any()
    for slot in slots[slots >= 0]:
        assert not (bits[slot] & bits[order[0]]).any()


def test_a_resumed_run_sees_the_same_parts_and_the_generic_stream_none():
    shape = dataclasses.replace(CONFIG.shape, image_size=64, max_instances=8)
    mixture = Mixture({"sa1b": 1.0}, {"any": 1.0}, cycle=1)
    config = dataclasses.replace(
        CONFIG,
        shape=shape,
        interactive=dataclasses.replace(CONFIG.interactive, mixture=mixture),
        generic=dataclasses.replace(CONFIG.generic, mixture=mixture),
        prompts=PromptPolicy(pseudo_hierarchy=0.5),
    )

    def build():
        sources = {"sa1b": FakeSource([target(number) for number in range(5)])}
        return make_iterator(config, sources, VOCABULARY)

    first = build()
    batches = [next(first) for _ in range(3)]
    assert any((batch["interactive"]["pseudo_targets"] >= 0).any() for batch in batches)
    assert all((batch["generic"]["pseudo_targets"] == -1).all() for batch in batches)
    second = build()
    second.set_state(first.state_for_step(1))
    for batch in batches[1:]:
        resumed = next(second)
        for stream, rows in batch.items():
            for key, values in rows.items():
                np.testing.assert_array_equal(resumed[stream][key], values, err_msg=key)
