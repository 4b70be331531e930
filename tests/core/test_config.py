import dataclasses

import jax
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from configs import finetune, joint, lite
from semsam_jax import config
from semsam_jax.config import checks
from semsam_jax.core.errors import ConfigError
from semsam_jax.criterion.terms import CriterionConfig, LossWeights
from semsam_jax.models.semantic_sam import SemanticSAM, init_params
from semsam_jax.train import build
from semsam_jax.train.build import criterion_config


def test_lite_learns_masks_first_and_names_on_frozen_masks():
    masks, names = (config.build(lite.get_config(stage)) for stage in ("masks", "names"))
    assert masks.text.source == "none"
    assert all(part.startswith("backbone/") for part in masks.optimizer.frozen)
    assert names.loss.granularity == masks.loss.granularity > 0  # fine-tuning takes that of names
    assert names.text.source == "table"
    model = SemanticSAM(config.model_config(names.model))
    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    learned = {
        "/".join(key)
        for key in traverse_util.flatten_dict(params)
        if not any("/".join(key).startswith(part) for part in names.optimizer.frozen)
    }
    kinds = ("object", "part", "owner")
    heads = {"logit_scale"} | {f"{kind}{of}_embed" for kind in kinds for of in ("", "_pooled")}
    assert learned == {f"decoder/{name}" for name in heads}
    assert names.text.learn_missing
    with pytest.raises(ValueError, match="masks, finish or names"):
        lite.get_config("both")


@pytest.mark.parametrize("choice", ["lite", "scratch", "swin_t", "swin_l"])
def test_joint_configs_build(choice):
    run = config.build(joint.get_config(choice))
    starts = {"lite": ("lite", "lite"), "scratch": ("lite", "")}
    assert (run.model.preset, run.model.warm_start) == starts.get(choice, (choice, "required"))
    assert run.data.generic_datasets["sa1b"] == 0


PSEUDO_OF_ONE_TARGET = {
    "model": {"preset": "lite", "granularity_token": True},
    "loss": {"granularity": 0.3},
    "data": {"pseudo_hierarchy": 0.5, "max_targets": 1},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 3}, r"config\.stepz: no such key; did you mean steps"),
        ({"data": {"image_sise": 3}}, r"data\.image_sise.*did you mean image_size"),
        ({"data": 3}, r"config\.data: got 3, expected a group"),
        ({"steps": "many"}, r"config\.steps: got 'many', expected int"),
        ({"steps": 0}, "steps: 0; must be at least 1"),
        ({"data": {"subsets": {"sa1B": 0.1}}}, r"data\.subsets\.sa1B: no dataset of this run"),
        ({"seed": -1}, "seed: -1; must not be negative"),
        ({"seed": 2**32}, "seed: 4294967296; must be below"),
        ({"fsdp": 0}, "fsdp: 0; must be at least 1, or -1"),
        ({"eval_suites": "one_click"}, r"eval_suites: got 'one_click', expected values"),
        ({"time_limit_sec": float("nan")}, r"config\.time_limit_sec: got nan, expected a finite"),
        ({"data": {"datasets": 3}}, r"config\.data\.datasets: got 3, expected a group"),
        (
            {"data": {"datasets": {"coco": "x"}}},
            r"config\.data\.datasets\.coco: got 'x', expected f",
        ),
        (
            {"data": {"datasets": {"coco": float("inf")}}},
            r"datasets\.coco: got inf, expected a fin",
        ),
        ({"data": {"num_prompts": 0}}, r"data\.num_prompts: 0; must be at least 1"),
        ({"data": {"flip": 1.5}}, r"data\.flip: 1\.5; must lie in 0\.\.1"),
        ({"data": {"pseudo_hierarchy": 1.5}}, r"pseudo_hierarchy: 1\.5; must lie in 0\.\.1"),
        (
            {"data": {"pseudo_hierarchy": float("nan")}},
            r"pseudo_hierarchy: got nan, expected a fin",
        ),
        ({"data": {"pseudo_hierarchy": 0.5}}, r"0\.5, but loss\.granularity is 0"),
        (PSEUDO_OF_ONE_TARGET, r"data\.max_targets 1 leaves no room for parts; set"),
        ({"optimizer": {"decay_at": 0.9}}, r"decay_at: got 0\.9, expected 2 values"),
        ({"optimizer": {"decay_at": (0.1, 0.2, 0.3)}}, "decay_at: got .*, expected 2 values"),
        ({"optimizer": {"decay_at": (0.9, 0.5)}}, "decay_at: .* the smaller one first"),
        ({"optimizer": {"learning_rate": -1.0}}, "learning_rate: -1.0; must not be negative"),
        ({"optimizer": {"clip_norm": 0.0}}, "clip_norm: 0.0; must be above 0"),
        ({"optimizer": {"ema": 1.0}}, "ema: 1.0; must lie in 0..1, below 1"),
        ({"loss": {"dice": -2.0}}, r"loss\.dice: -2\.0; must not be negative"),
        ({"loss": {"importance_ratio": 2.0}}, r"importance_ratio: 2\.0; must lie in 0\.\.1"),
        ({"model": {"preset": "swin_xl"}}, "unknown preset 'swin_xl'; use one of"),
        ({"model": {"dtype": "float16"}}, "model.dtype"),
        ({"data": {"image_size": 100}}, "not a multiple of 32"),
        ({"data": {"image_size": 96, "mask_stride": 5}}, "mask_stride"),
        ({"data": {"interactive_batch": 0, "generic_batch": 0}}, "both are 0"),
        ({"data": {"interactive_batch": -1}}, "must not be negative"),
        ({"data": {"datasets": {"coco": -1.0}}}, r"data\.datasets\.coco: -1"),
        ({"data": {"box_share": 2.0}}, "box_share"),
        ({"data": {"custom": "mine"}}, r"data\.custom: mine: nothing reads it.*datasets\.custom=1"),
        ({"data": {"custom_images": "mine"}}, r"custom_images: mine: no effect without data\.cust"),
        ({"data": {"custom_boxes_only": True}}, "custom_boxes_only: True: no effect without data"),
        ({"text": {"source": "encoder"}}, "has no text tower"),
        (
            {"text": {"source": "checkpoint", "table": "mine.npz"}},
            r"text\.table: mine\.npz: no effect with text\.source=checkpoint",
        ),
        ({"optimizer": {"schedule": "linear"}}, "use one of step, cosine"),
    ],
)
def test_wrong_values_name_the_key_and_the_fix(change, message):
    with pytest.raises(ConfigError, match=message):
        config.build(ConfigDict(change))


def test_every_number_has_bounds():
    """A number that is forgotten would be accepted whatever it is."""
    flat = traverse_util.flatten_dict(config.RunConfig().to_dict(), sep=".")
    numbers = {key for key, value in flat.items() if type(value) in (int, float)}
    elsewhere = {
        "fsdp",
        "data.image_size",
        "data.mask_stride",
        "data.max_targets",
        "model.logit_scale",
    }
    elsewhere |= {"optimizer.clip_norm", "optimizer.ema", "loss.prompt_point_ratio"}
    elsewhere |= {key for key in numbers if key.split(".")[1:2] in (["prompt_shares"], ["subsets"])}
    assert numbers - elsewhere == {*checks.AT_LEAST_1, *checks.NOT_NEGATIVE, *checks.SHARES}


def test_batch_must_divide_over_the_devices():
    run = config.build({"data": {"interactive_batch": 6, "generic_batch": 4}})
    config.check_batch(run, 2)
    with pytest.raises(ConfigError, match=r"data\.interactive_batch: 6 is not divisible by the 4"):
        config.check_batch(run, 4)


def test_fine_tuning_keeps_the_loss_that_its_checkpoint_learned():
    """Another loss first undoes what was learned; what the user says still counts."""
    chosen = finetune.get_config("frozen")
    chosen.model.warm_start = "somewhere"
    chosen.loss.dice = 7.0
    trained = config.build(joint.get_config("lite"))
    meta = {
        "preset": "lite",
        "model_config": {"decoder": {"num_tokens": 6}},
        "image_size": 256,
        "class_heads_trained": True,
        "text": {"source": "table", "table": ""},
        "config": {"loss": dataclasses.asdict(trained.loss)},
    }
    run = config.inherit_from_checkpoint(config.build(chosen), meta)
    points = {"num_points": 4096, "match_points": 2048}
    assert run.loss == dataclasses.replace(trained.loss, dice=7.0, **points)
    assert not config.needs_checkpoint(run)
    # A converted checkpoint says nothing: the paper's weights.
    run = config.inherit_from_checkpoint(
        config.build(chosen), {k: v for k, v in meta.items() if k != "config"}
    )
    assert run.loss == config.LossChoice(dice=7.0, **points)
    chosen.loss.from_checkpoint = False
    assert config.inherit_from_checkpoint(config.build(chosen), meta).loss == config.LossChoice(
        dice=7.0, **points
    )


def test_fine_tuning_adds_the_seventh_token_when_told_to():
    """It was ignored, and the error for its loss said to ask for it."""
    chosen = finetune.get_config("frozen")
    chosen.model.warm_start = "somewhere"
    chosen.model.granularity_token = True
    chosen.loss.granularity = 0.3
    meta = {"preset": "lite", "model_config": {"decoder": {"num_tokens": 6}}}
    run = config.inherit_from_checkpoint(config.build(chosen), meta)
    assert config.model_config(run.model).decoder.granularity_token
    chosen.model.num_tokens = chosen.data.max_targets = 3  # refused when the weights are read
    assert config.inherit_from_checkpoint(config.build(chosen), meta).model.num_tokens == 3


def test_every_key_of_the_losses_reaches_the_criterion():
    """A key that is forgotten on the way would be accepted and do nothing."""
    names = {field.name for field in dataclasses.fields(config.LossChoice)}
    reached = {field.name for field in dataclasses.fields(CriterionConfig)}
    reached |= {field.name for field in dataclasses.fields(LossWeights)}
    assert names - reached == {"from_checkpoint"}
    changed = {"iou_target": "expected", "score_all_tokens": True, "iou_every_layer": False}
    criterion = criterion_config(config.build({"loss": {**changed, "owner_class": 3.0}}))
    assert {name: getattr(criterion, name) for name in changed} == changed
    assert criterion.weights.owner_class == 3.0


def test_the_backbone_of_lite_learns_when_told_to():
    run = config.build(lite.get_config("masks"))
    assert config.model_config(run.model).backbone.is_trained
    assert "backbone" not in build.frozen_groups(config.model_config(run.model), run)
    choice = dataclasses.replace(run.model, train_backbone=False)
    assert not config.model_config(choice).backbone.is_trained
    assert "backbone" in build.frozen_groups(config.model_config(choice), run)
    twice = dataclasses.replace(
        run, optimizer=dataclasses.replace(run.optimizer, frozen=("backbone",))
    )
    assert build.frozen_groups(config.model_config(choice), twice) == ("backbone",)


@pytest.mark.parametrize("source", ["table", "encoder", "none"])
def test_fine_tuning_learns_the_names_that_a_table_lacks(source):
    chosen = finetune.get_config("frozen")
    chosen.model.warm_start = "somewhere"
    meta = {
        "preset": "swin_t",
        "model_config": {"decoder": {"num_tokens": 6}},
        "class_heads_trained": source != "none",
        "text": {"source": source},
    }
    text = config.inherit_from_checkpoint(config.build(chosen), meta).text
    assert (text.source, text.learn_missing) == (source, source == "table")
    chosen.text.learn_missing = False
    assert not config.inherit_from_checkpoint(config.build(chosen), meta).text.learn_missing
