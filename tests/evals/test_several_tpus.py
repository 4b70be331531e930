"""Evaluations on a host with several TPUs, whose kernels no compiler splits by itself."""

import jax
import numpy as np
import pytest

from semsam_jax.core.backend import compiling_for
from semsam_jax.core.structs import TextTable
from semsam_jax.evals import generic_runner, prompt_scores
from semsam_jax.evals.generic_runner import GenericRunner
from semsam_jax.evals.prompt_runner import PromptQuery, PromptRunner
from semsam_jax.evals.samples import EvalSample
from semsam_jax.models.semantic_sam import SemanticSAM, init_params
from tests.models.random_params import random_params
from tests.sharded import small

NET = SemanticSAM(small.MODEL)


class Lowered(Exception):
    """Instead of a result: no TPU is here."""


def lowered(function):
    def lower(*args):
        text = function.trace(*args).lower(lowering_platforms=("tpu",)).as_text()
        raise Lowered(f"{text.count('@tpu_custom_call')} kernels")

    return lower


@pytest.fixture(scope="module")
def params():
    return random_params(lambda key: init_params(NET, key), seed=3)


def test_images_and_whole_images_are_split_over_several_tpus(params, monkeypatch):
    sample = EvalSample(np.zeros((64, 64, 3), np.uint8), (64, 64), [np.ones((64, 64), bool)], "a")
    devices = jax.devices()[:2]
    monkeypatch.setattr(prompt_scores, "encode", lowered(prompt_scores.encode))
    monkeypatch.setattr(generic_runner, "_forward", lowered(generic_runner._forward))
    query = PromptQuery(np.full((1, 4), 0.5, np.float32), np.zeros(1, np.int64))
    rows = np.eye(small.NUM_NAMES, 16, dtype=np.float32)
    text = TextTable(*np.split(rows, [small.NUM_OBJECTS]))
    with compiling_for("tpu", "TPU v5 lite"):
        with pytest.raises(Lowered, match=r"^1 kernels"):
            PromptRunner(NET, params, devices=devices).query(sample, query)
        with pytest.raises(Lowered, match=r"^[1-9]"):
            GenericRunner(NET, params, text, devices=devices).answer([sample])
