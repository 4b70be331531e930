"""The paper's presets: every shape of a full-size joint step, and a real step of Swin-T."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import joint
from data_pipelines.schema import BatchShape
from semsam_jax import config
from semsam_jax.core.structs import Batch, StreamBatch
from semsam_jax.models.semantic_sam import SemanticSAM, init_params
from semsam_jax.parallel.mesh import build_mesh
from semsam_jax.parallel.sharding import state_shardings
from semsam_jax.train.build import criterion_config, frozen_groups
from semsam_jax.train.optimizer import build_optimizer
from semsam_jax.train.state import new_state
from semsam_jax.train.step import TextInputs, TrainStep
from tests.e2e import runs
from tests.train.constants import constant_outputs

VOCABULARY, OBJECTS, ROWS = 997, 754, 40


def _rows(run: config.RunConfig, rows: int) -> Batch:
    data = run.data
    shape = BatchShape(
        image_size=data.image_size,
        max_instances=data.max_instances,
        num_prompts=data.num_prompts,
        mask_stride=data.mask_stride,
        vocab_size=VOCABULARY,
    )
    return Batch(
        **{
            key: jax.ShapeDtypeStruct((rows, *size), dtype)
            for key, (dtype, size) in shape.spec().items()
        }
    )


@pytest.mark.parametrize("preset", ["swin_t", pytest.param("swin_l", marks=pytest.mark.nightly)])
def test_a_full_size_joint_step_has_the_right_shapes(preset):
    run = config.build(joint.get_config(preset))
    model_config = config.model_config(run.model)
    mesh = build_mesh(run.fsdp)
    model = SemanticSAM(model_config, dtype=jnp.dtype(run.model.dtype), remat=run.model.remat)
    tx = build_optimizer(run.optimizer, run.steps, frozen_groups(model_config, run))
    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    state = jax.eval_shape(lambda tree: new_state(tree, tx, False), params)
    shardings = state_shardings(mesh, state)
    if run.fsdp == -1:
        largest = max(jax.tree.leaves(params), key=lambda leaf: leaf.size)
        specs = jax.tree.leaves(
            jax.tree.map(lambda s, p: s.spec if p.size == largest.size else None, shardings, state)
        )
        assert any("fsdp" in str(spec) for spec in specs)
    step = TrainStep(model, tx, criterion_config(run), mesh, OBJECTS, seed=0)
    batch = StreamBatch(_rows(run, ROWS), _rows(run, ROWS))
    context = model_config.text.context_length
    text = TextInputs(token_ids=jax.ShapeDtypeStruct((VOCABULARY, context), jnp.int32))
    traced = step.forward.trace(state.params, state.step, batch, text)
    outputs, vjp_fn, costs = traced.out_info
    layers = model_config.decoder.num_layers
    assert outputs.prompts.mask_embed.shape == (layers, ROWS, 60, 6, 256)
    assert outputs.queries.layers.object_logits.shape == (layers + 1, ROWS, 300, OBJECTS)
    assert costs.prompts.shape == (ROWS, 60, 6, 6)
    assert costs.queries.shape == (ROWS, layers + 2, 300, 100)
    assert jax.tree.leaves(vjp_fn)
    # A constant has no rows that could be split: it would lie whole on each device of a pod.
    # A number for each query and layer may, a feature vector may not.
    constants = constant_outputs(traced.jaxpr.jaxpr)
    assert constants
    by_row = [c for c in constants if {ROWS, 2 * ROWS} & set(c.shape)]
    assert sum(c.size * c.dtype.itemsize for c in by_row) < 2**18 * ROWS, by_row


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_swin_t_takes_a_real_step(cache, tmp_path):
    """The preset itself with its text tower, at a small canvas and with few names to encode.

    Encoding all names of seven datasets is most of the arithmetic of such a step.
    """
    shares = {}
    for name in joint.SHARES:
        share = float(name == "pascal_part")
        shares |= {f"data__{group}__{name}": share for group in ("datasets", "generic_datasets")}
    done = runs.run(
        tmp_path / "run",
        cache,
        config="joint.py:swin_t",
        model__warm_start="random",
        model__backbone_weights="random",
        model__text_weights="random",
        model__preset="swin_t",
        model__dtype="float32",
        model__remat="none",
        data__num_workers=0,
        data__image_size=64,
        data__interactive_batch=1,
        data__generic_batch=1,
        steps=1,
        eval_images=0,
        **shares,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["preset"] == "swin_t"
    assert np.isfinite(summary["loss_last"])
