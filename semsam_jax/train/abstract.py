"""Abstract inputs of a training step: shapes on a mesh, without arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from data_pipelines.schema import BatchShape
from semsam_jax.config import RunConfig
from semsam_jax.core.structs import Batch, StreamBatch, TextTable
from semsam_jax.models.presets import ModelConfig
from semsam_jax.models.semantic_sam import SemanticSAM
from semsam_jax.parallel.mesh import batch_sharding, replicated
from semsam_jax.train.state import TrainState, abstract_state
from semsam_jax.train.step import TextInputs
from semsam_jax.train.warm_start import parameter_shapes


@dataclasses.dataclass(frozen=True)
class AbstractInputs:
    """Shapes, dtypes and shardings of everything that a step takes."""

    state: TrainState
    batch: StreamBatch
    text: TextInputs


def abstract_inputs(
    run: RunConfig,
    model: SemanticSAM,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    num_objects: int,
    num_names: int,
) -> AbstractInputs:
    """Returns the inputs of a run's step on a mesh, whose devices need not exist.

    Args:
        run: the run; its quotas are those of one global batch.
        model: its network.
        tx: its optimiser.
        mesh: of the run.
        num_objects: objects of the vocabulary.
        num_names: objects and parts of the vocabulary.
    """
    return AbstractInputs(
        state=abstract_state(parameter_shapes(run, model), tx, run.optimizer.ema > 0, mesh),
        batch=abstract_batch(run, mesh, num_names),
        text=_text(run, model.config, mesh, num_objects, num_names),
    )


def abstract_batch(run: RunConfig, mesh: Mesh, num_names: int) -> StreamBatch:
    """Returns the global batch of a run as shapes on its mesh."""
    data = run.data
    shape = BatchShape(
        image_size=data.image_size,
        max_instances=data.max_instances,
        num_prompts=data.num_prompts,
        max_targets=data.max_targets,
        mask_stride=data.mask_stride,
        vocab_size=max(num_names, 1),
    )
    sharding = batch_sharding(mesh)

    def stream(rows: int) -> Batch | None:
        if not rows:
            return None
        spec = shape.spec().items()
        return Batch(
            **{
                key: jax.ShapeDtypeStruct((rows, *own), dtype, sharding=sharding)
                for key, (dtype, own) in spec
            }
        )

    return StreamBatch(stream(data.interactive_batch), stream(data.generic_batch))


def _text(
    run: RunConfig, config: ModelConfig, mesh: Mesh, num_objects: int, num_names: int
) -> TextInputs:
    if run.text.source == "none":
        return TextInputs()
    whole = replicated(mesh)
    if run.text.source == "encoder":
        shape = (num_names, config.text.context_length)
        return TextInputs(token_ids=jax.ShapeDtypeStruct(shape, jnp.int32, sharding=whole))
    width = config.decoder.text_dim
    sizes = (num_objects, num_names - num_objects)
    return TextInputs(
        table=TextTable(
            *(jax.ShapeDtypeStruct((n, width), jnp.float32, sharding=whole) for n in sizes)
        )
    )
