"""Loss of the whole model, image to scalar, and its gradient in every parameter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.convert.from_torch import from_torch
from semsam_jax.convert.names import unwrap
from semsam_jax.convert.to_torch import to_torch
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.core.structs import Costs, Prompts
from semsam_jax.criterion.interactive import interactive_losses
from semsam_jax.criterion.total import weighted_sum
from semsam_jax.matching.costs import prompt_costs
from semsam_jax.matching.transport import assign
from semsam_jax.models.presets import model_config
from semsam_jax.models.semantic_sam import SemanticSAM
from tests.criterion import recorded
from tests.criterion.test_interactive import NAMES, SUFFIX
from tests.golden import table
from tests.golden.table import DATA, golden

MODEL = SemanticSAM(dataclasses.replace(model_config("tiny"), has_generic=False))
RELATIVE = 1e-3


@dataclasses.dataclass(frozen=True)
class LossRun:
    total: float
    terms: dict
    gradients: dict


@pytest.fixture(scope="module")
def outcome() -> LossRun:
    """Both programs of a step by hand, with the recorded random numbers."""
    data, config = golden("criterion"), recorded.released_config()
    state = unwrap(read_state_dict(DATA / "tiny_ref.pth"))
    params = jax.tree.map(jnp.asarray, from_torch(state, MODEL.config).params)
    image = jnp.asarray(golden("tiny_inputs")["image_a"])[None]
    rows = recorded.interactive_rows()
    prompts = Prompts(
        boxes=jnp.asarray(data["tgt/points"])[None],
        type_index=jnp.asarray(data["tgt/pb"], jnp.int32)[None],
        valid=rows.prompt_valid,
    )

    def run(model):
        pyramid = model.encode_image(image, rows.size_hw)
        predictions = model.decode_prompts(
            pyramid,
            prompts,
            all_layers=True,
            noise=jnp.asarray(data["e2e/noise_rand"]),
            is_box=rows.prompt_is_box,
        )
        return predictions, pyramid.mask_features

    @jax.jit
    def forward(params):
        outputs, vjp_fn = jax.vjp(lambda p: MODEL.apply({"params": p}, method=run), params)
        last = jax.tree.map(lambda x: x[-1], outputs[0])
        points = jnp.asarray(data["e2e/rand_matcher"])
        return outputs, vjp_fn, prompt_costs(last, outputs[1], rows, points, config.weights)

    outputs, vjp_fn, costs = forward(params)
    assignment, _ = assign(Costs(costs, None), rows.prompt_targets, None)
    points = recorded.many_to_many_points("e2e", assignment.token_of_target)

    @jax.jit
    def backward(outputs, vjp_fn, assignment, points):
        def loss(outputs):
            terms = interactive_losses(*outputs, rows, assignment.token_of_target, points, config)
            return weighted_sum(terms, config.weights), terms

        (total, terms), gradient = jax.value_and_grad(loss, has_aux=True)(outputs)
        return total, terms, vjp_fn(gradient)[0]

    total, terms, gradients = backward(outputs, vjp_fn, assignment, points)
    named = to_torch(gradients, MODEL.config)
    repeated = {alias: named.tensors[name] for alias, name in named.aliases.items()}
    return LossRun(float(total), terms, named.tensors | repeated)


def _check(name: str, error: float, tolerance: float) -> None:
    table.ROWS.append(table.ParityRow(f"criterion:e2e/{name}", float(error), tolerance))
    assert table.ROWS[-1].is_good, f"{name}: relative error {error:.3g}, tolerance {tolerance:.3g}"


def test_losses(outcome):
    data, weights = golden("criterion"), recorded.released_config().weights
    want = float(data["e2e/loss_total"])
    _check("loss_total (relative)", abs(outcome.total / want - 1), 1e-4)
    for layer, name in enumerate(recorded.LAYERS):
        for ours, theirs in NAMES.items():
            want = float(data[f"e2e/loss_weighted/{theirs}_{SUFFIX[name]}"])
            got = float(outcome.terms[ours][layer]) * getattr(weights, ours)
            assert got == pytest.approx(want, rel=1e-4), f"{ours} {name}"


def test_every_gradient_norm(outcome):
    data = golden("criterion")
    worst = 0.0
    for name, want in zip(data["e2e/grad_norm_names"], data["e2e/grad_norm_values"], strict=True):
        got = np.linalg.norm(outcome.gradients[name].astype(np.float64))
        error = abs(got - want) / want if want else got
        assert error < RELATIVE, f"{name}: norm {got:.6g}, recorded {want:.6g}"
        worst = max(worst, error)
    _check("grad_norm, all parameters (relative)", worst, RELATIVE)


def test_whole_gradients(outcome):
    data = golden("criterion")
    keys = [key for key in data if key.startswith("e2e/grad/")]
    assert len(keys) == 12
    for key in keys:
        want = data[key]
        got = outcome.gradients[key.removeprefix("e2e/grad/")]
        assert got.shape == want.shape
        error = np.abs(got - want).max() / np.abs(want).max()
        _check(f"{key.removeprefix('e2e/')} (relative)", error, RELATIVE)
