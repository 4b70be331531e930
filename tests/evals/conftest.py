"""What the tests of the evaluations share."""

import json

import jax
import numpy as np
import pytest

from semsam_jax.core.model_files import save_model
from semsam_jax.models import presets
from semsam_jax.models.semantic_sam import SemanticSAM, init_params


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of an untrained tiny model."""
    config = presets.PRESETS["tiny"]
    model = SemanticSAM(config)
    shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape).astype(np.float32), shapes)
    meta = {
        "preset": "tiny",
        "model_config": json.loads(presets.to_json(config)),
        "level_order": list(range(6)),
        "prompt_preset": "default",
        "image_size": 64,
        "class_heads_trained": True,
        "text": {"source": "encoder"},
    }
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(folder, dict(params), meta)
    return folder
