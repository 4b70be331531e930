import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from semsam_jax.convert import names, torch_reader
from semsam_jax.convert.from_torch import from_torch
from semsam_jax.core.model_files import save_model
from semsam_jax.inference.loading import LoadedModel, model_from_params
from semsam_jax.models import presets

DATA = Path(__file__).parents[1] / "golden" / "data"


def tiny_meta(config, **changes):
    return {
        "preset": "tiny",
        "model_config": json.loads(presets.to_json(config)),
        "level_order": [3, 2, 0, 4, 1, 5],
        "prompt_preset": "released_v1",
        "class_heads_trained": False,
        "text": {"source": "encoder"},
        "vocabulary": {"objects": [], "parts": []},
        "image_size": 128,
    } | changes


def generic_params():
    """Parameters of the tiny model with all of its branches."""
    state = {}
    for file in ("tiny_ref.pth", "tiny_generic_ref.pth"):
        state |= names.unwrap(torch_reader.read_state_dict(DATA / file))
    return from_torch(state, presets.PRESETS["tiny"], allow_unexpected=True).params


@pytest.fixture(scope="session")
def golden():
    return {
        name: np.load(DATA / f"{name}.npz")
        for name in (
            "tiny_image_a",
            "tiny_inputs",
            "tiny_eval_amg",
            "generic_openseed",
            "units",
        )
    }


@pytest.fixture(scope="session")
def tiny_params():
    config = dataclasses.replace(presets.PRESETS["tiny"], has_generic=False)
    state = names.unwrap(torch_reader.read_state_dict(DATA / "tiny_ref.pth"))
    return config, from_torch(state, config).params


@pytest.fixture(scope="session")
def tiny_model(tiny_params) -> LoadedModel:
    config, params = tiny_params
    return model_from_params(params, tiny_meta(config))


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_params, tmp_path_factory):
    config, params = tiny_params
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(folder, params, tiny_meta(config))
    return folder


@pytest.fixture(scope="session")
def image_a(golden):
    return golden["tiny_inputs"]["image_a"]
