"""All evaluators follow the one protocol."""

import numpy as np
import pytest

from semsam_jax.evals.evaluator import exact_mean
from semsam_jax.evals.generic import GenericEvaluator
from semsam_jax.evals.granularity import GranularityEvaluator
from semsam_jax.evals.instance_ap import InstanceEvaluator
from semsam_jax.evals.interactive import InteractiveEvaluator
from semsam_jax.evals.one_click import OneClickEvaluator
from semsam_jax.evals.panoptic import PanopticEvaluator
from semsam_jax.evals.semantic import SemanticEvaluator

EVALUATORS = (
    GenericEvaluator,
    GranularityEvaluator,
    InstanceEvaluator,
    InteractiveEvaluator,
    OneClickEvaluator,
    PanopticEvaluator,
    SemanticEvaluator,
)


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("method", ["reset", "process", "merge", "result"])
def test_every_evaluator_has_the_four_methods(evaluator, method):
    assert callable(getattr(evaluator, method))


def test_exact_mean_ignores_the_order(rng):
    values = rng.normal(size=1000) * 10.0 ** rng.integers(-8, 8, 1000)
    assert exact_mean(values) == exact_mean(rng.permutation(values))
    assert np.isnan(exact_mean([]))
