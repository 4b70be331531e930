"""What the recipes show how often, computed from the published sizes of the datasets."""

import dataclasses
import math

import numpy as np
import pytest

from benchmarks.epochs import RECIPES, tables_of
from configs import eight_gpus, joint, sa1b
from data_pipelines.index import build_index
from data_pipelines.index.subset import IndexShare, is_chosen
from data_pipelines.mixture import MANY_EPOCHS, Mixture, build_mixture, epoch_warnings, epochs
from data_pipelines.recipe import pipeline_config
from data_pipelines.sizes import HAS_OBJECTS, HAS_PARTS, TRAIN_IMAGES
from semsam_jax import config as config_lib
from semsam_jax.core.errors import ConfigError
from tests.data_pipelines.fake_source import fake_source


@pytest.mark.parametrize("choice", ["swin_t", "swin_l", "swin_t,rows=512"])
def test_the_joint_stage_sees_sa1b_once_and_no_labelled_set_too_often(choice):
    run = config_lib.build(joint.get_config(choice))
    seen = epochs(tables_of(run))
    assert set(seen) == set(TRAIN_IMAGES)
    assert seen["sa1b"] >= 1
    assert all(0 < seen[name] <= MANY_EPOCHS for name in HAS_OBJECTS)
    assert not epoch_warnings(tables_of(run))


def test_most_prompts_of_the_joint_stage_may_have_several_targets():
    run = config_lib.build(joint.get_config("swin_t"))
    policy = pipeline_config(dataclasses.asdict(run.data), 0).prompts
    table = tables_of(run)["interactive"]
    assert policy.hierarchy
    several = sum(row.weight for row in table.active if row.dataset in ("sa1b", *HAS_PARTS))
    assert several * (1 - policy.box_share) > 0.7  # the quarter of boxes has one target each


def test_no_recipe_repeats_a_set_too_often():
    for name, config in RECIPES:
        seen = epochs(tables_of(config_lib.build(config)))
        assert max(seen.values()) <= MANY_EPOCHS, name


def test_epochs_add_up_over_views_and_streams():
    """4 images of paco, 2 with parts; 100 + 100 rows, half of the clicks on parts."""
    index = {"paco": build_index(fake_source("paco", 6))}
    images = len(index["paco"])
    clicks = build_mixture(Mixture({"paco": 1.0}, {"any": 1.0, "part": 1.0}), index, total_rows=100)
    named = build_mixture(Mixture({"paco": 1.0}), index, total_rows=100)
    both = {"interactive": clicks, "generic": named}
    assert epochs(both)["paco"] == pytest.approx(200 / images)
    often = build_mixture(Mixture({"paco": 1.0}), index, total_rows=151 * images)
    (warning,) = epoch_warnings({"generic": often})
    assert warning.startswith("paco: the run passes 151 times over its images, more than 150")


def test_other_rows_see_as_many_images_by_the_stated_rule():
    run = config_lib.build(joint.get_config("swin_t,rows=512"))
    assert (run.data.interactive_batch, run.data.generic_batch) == (256, 256)
    assert run.steps == round(368_750 * 64 / 512)
    assert run.optimizer.learning_rate == pytest.approx(1e-4 * math.sqrt(8))
    assert run.optimizer.warmup_steps == 2048
    assert run.optimizer.ema == pytest.approx(0.9998)
    same = config_lib.build(joint.get_config("swin_t,rows=64"))
    assert same == config_lib.build(joint.get_config("swin_t"))
    few = config_lib.build(sa1b.get_config("swin_t,rows=16"))
    assert few.optimizer.learning_rate == pytest.approx(5e-5)
    assert few.optimizer.ema == 0


@pytest.mark.parametrize("number", ["rows=63", "row=2", "rows=x", "rows=-2", "rows=0", "rows=96.5"])
def test_choices_that_mean_nothing_are_told(number):
    with pytest.raises(ValueError, match="rows"):
        joint.get_config(f"swin_t,{number}")


@pytest.mark.parametrize("preset", ["lite", "scratch"])
def test_rows_that_lite_would_ignore_are_refused(preset):
    with pytest.raises(ValueError, match=r"rows is for swin_t and swin_l; for .*interactive_batch"):
        joint.get_config(f"{preset},rows=8")


def test_a_share_of_a_set_is_fixed_and_nested():
    numbers = np.arange(200_000)
    small, large = is_chosen(numbers, 0.03), is_chosen(numbers, 0.3)
    assert abs(small.mean() - 0.03) < 0.002
    assert abs(large.mean() - 0.3) < 0.004
    assert not np.any(small & ~large)
    assert is_chosen(numbers, 1.0).all()
    # Neighbours are independent: as many pairs as chance has.
    assert abs((large[1:] & large[:-1]).mean() - 0.09) < 0.004


def test_a_subset_sees_the_same_records_in_every_view():
    index = build_index(fake_source("paco", 40))
    subset = IndexShare(index, 0.5)
    assert 0 < len(subset) < len(index)
    for view in ("any", "object", "part"):
        assert set(subset.view(view)) == set(index.view(view)) & set(subset.view("any"))


def test_eight_gpus_train_on_twenty_thousand_images():
    run = config_lib.build(eight_gpus.get_config())
    share = run.data.subsets["sa1b"]
    assert abs(is_chosen(np.arange(TRAIN_IMAGES["sa1b"]), share).sum() - 20_000) < 500
    assert run.steps == 20_000


def test_shares_outside_are_told():
    with pytest.raises(ConfigError, match=r"data\.subsets\.sa1b"):
        config_lib.build({"data": {"subsets": {"sa1b": 0.0}}})
