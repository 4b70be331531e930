"""Models and runs that were stored under earlier names of keys and values."""

import json

from semsam_jax import config as config_lib
from semsam_jax.core import checkpoint_io, config_files, old_names
from semsam_jax.core.model_files import save_model

RUN = {
    "model": {"start": "aligned", "preset": "lite"},
    "data": {
        "own": "/mine",
        "datasets": {"own": 1.0, "coco": 0.5},
        "generic_datasets": {"own": 1.0},
    },
    "loss": {"near_prompts": 0.6, "dice": 2.0},
    "eval_photos": 24,
    "eval_dataset": "own",
    "streams_apart": True,
}
META = {
    "prompt_preset": "own",
    "level_order": [0],
    "config": RUN,
    "must_match": {group: RUN[group] for group in ("data", "loss")},
}


def test_every_old_name_is_a_key_of_today():
    upgraded = old_names.upgrade_meta(META)
    run = config_lib.build(upgraded["config"])  # an unknown key would be an error
    assert (run.model.init, run.data.custom, run.eval_dataset) == ("similarity", "/mine", "custom")
    assert dict(run.data.datasets) == {"custom": 1.0, "coco": 0.5}
    assert (run.loss.prompt_point_ratio, run.loss.dice) == (0.6, 2.0)
    assert (run.eval_images, run.accumulate_per_stream) == (24, True)
    assert upgraded["prompt_preset"] == "default"
    assert upgraded["must_match"]["data"] == upgraded["config"]["data"]
    assert upgraded["must_match"]["loss"] == {"prompt_point_ratio": 0.6, "dice": 2.0}


def test_what_is_current_stays_and_the_input_too():
    before = json.dumps(META)
    once = old_names.upgrade_meta(META)
    assert json.dumps(META) == before
    assert old_names.upgrade_meta(once) == once


def test_a_stored_model_is_read_in_names_of_today(tmp_path):
    save_model(tmp_path / "m", {"w": [1.0]}, META)
    meta = checkpoint_io.read_meta(tmp_path / "m")
    assert meta["prompt_preset"] == "default"
    assert meta["config"]["loss"]["prompt_point_ratio"] == 0.6
    _, meta = checkpoint_io.read_model(tmp_path / "m")
    assert meta["config"]["eval_images"] == 24


def test_options_of_earlier_releases_are_understood(capsys):
    words = ["--config.data.own=mine", "--config.eval_photos=0", "--config.model.start=aligned"]
    words += ["--config.eval_dataset=coco", "--config.steps=3", "--workdir=own"]
    assert config_files.expand(words) == [
        "--config.data.custom=mine",
        "--config.eval_images=0",
        "--config.model.init=similarity",
        *words[3:],
    ]
    assert capsys.readouterr().err.splitlines() == [
        "note: config.data.own is called config.data.custom now",
        "note: config.eval_photos is called config.eval_images now",
        "note: config.model.start is called config.model.init now",
    ]
