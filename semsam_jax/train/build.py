"""Builders of a run: network, optimiser, step, and checkpoint metadata."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from data_pipelines.vocabulary import Vocabulary
from semsam_jax import config as config_lib
from semsam_jax.config import RunConfig
from semsam_jax.convert import zoo
from semsam_jax.core import checkpoint_io
from semsam_jax.core.errors import CheckpointError
from semsam_jax.criterion.terms import CriterionConfig, LossConfig
from semsam_jax.models import presets
from semsam_jax.models.semantic_sam import SemanticSAM
from semsam_jax.train.checkpoints import Checkpoints
from semsam_jax.train.micro import MicroBatches
from semsam_jax.train.optimizer import build_optimizer, is_frozen
from semsam_jax.train.state import TrainState, abstract_state, shard_state
from semsam_jax.train.step import TrainStep
from semsam_jax.train.warm_start import initial_params, parameter_shapes


def build_model(run: RunConfig, num_learned: int = 0) -> SemanticSAM:
    """The network of a run; `num_learned` is the number of `train.text.learned_names`."""
    config = dataclasses.replace(config_lib.model_config(run.model), learned_names=num_learned)
    return SemanticSAM(config, dtype=jnp.dtype(run.model.dtype), remat=run.model.remat)


def build_tx(run: RunConfig, model: SemanticSAM) -> optax.GradientTransformation:
    """The optimiser of a run."""
    return build_optimizer(run.optimizer, run.steps, frozen_groups(model.config, run))


def build_step(
    run: RunConfig,
    model: SemanticSAM,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    num_objects: int,
    class_weights: np.ndarray | None = None,
) -> TrainStep:
    """The compiled step of a run; see `TrainStep` for the arguments."""
    return TrainStep(
        model=model,
        tx=tx,
        criterion=criterion_config(run),
        mesh=mesh,
        num_objects=num_objects,
        seed=run.seed,
        ema=run.optimizer.ema,
        micro=MicroBatches(run.accumulate, run.accumulate_per_stream),
        frozen=frozen_groups(model.config, run),
        class_weights=class_weights,
    )


def criterion_config(run: RunConfig) -> CriterionConfig:
    """The group `loss`, with the precision that fits the model's dtype."""
    is_exact = run.model.dtype == "float32"
    return CriterionConfig(
        **{field.name: getattr(run.loss, field.name) for field in dataclasses.fields(LossConfig)},
        precision=jax.lax.Precision.HIGHEST if is_exact else jax.lax.Precision.DEFAULT,
    )


def frozen_groups(config: presets.ModelConfig, run: RunConfig) -> tuple[str, ...]:
    """Parts of the parameters that never change in this run, each once."""
    is_fixed = isinstance(config.backbone, presets.EfficientNetLiteConfig)
    frozen = ["backbone"] if is_fixed and not config.backbone.is_trained else []
    if run.text.source != "encoder" and config.text is not None:
        frozen.append("text_encoder")
    return tuple(dict.fromkeys((*frozen, *run.optimizer.frozen)))


def build_meta(
    run: RunConfig,
    model: SemanticSAM,
    vocabulary: Vocabulary,
    text_meta: Mapping,
) -> dict:
    """Metadata of a checkpoint, plain values only.

    `must_match` must be equal in a resumed run (`checkpoints.check_same_run`).
    """
    plain = json.loads(json.dumps(run.to_dict()))
    sizes = json.loads(presets.to_json(model.config))
    return {
        "preset": run.model.preset,
        "model_config": sizes,
        "config": plain,
        "image_size": run.data.image_size,
        "level_order": list(range(model.config.decoder.num_tokens)),
        "prompt_preset": "default",
        "has_ema": run.optimizer.ema > 0,
        "text": dict(text_meta),
        "vocabulary": {
            "objects": list(dict.fromkeys(vocabulary.object_names)),
            "parts": list(dict.fromkeys(vocabulary.part_names)),
            "hash": vocabulary.fingerprint,
        },
        "before": None,
        "must_match": {
            "preset": run.model.preset,
            "model_config": sizes,
            "lora_rank": run.model.lora_rank,
            "vocabulary": vocabulary.fingerprint,
            **_match(run),
        },
    }


def start_answers(run: RunConfig, vocabulary: Vocabulary, class_mask: np.ndarray) -> dict:
    """What a new run's model can do with what its warm start brings.

    Args:
        run: the run.
        vocabulary: of its datasets.
        class_mask: bool [v], names that have a text embedding; the others teach nothing.

    Returns:
        Which outputs have been trained, by the run or by its start (prompts_trained,
        class_heads_trained, parts_trained); the canvas of inference (image_size): that of training,
        or that of the start if it is larger, so that a short run does not make masks coarser; and
        the thresholds, scales and panoptic_source of the start, which hold until others are
        measured.
    """
    start = {}
    if run.model.warm_start:
        start = checkpoint_io.read_meta(zoo.resolve(run.model.warm_start))
    text = start.get("text") or {}
    has_same_names = run.text.source != "none" and (
        (text.get("source"), text.get("table") or "") == (run.text.source, run.text.table)
    )
    knew = has_same_names and bool(start.get("class_heads_trained"))
    # A frozen head stays as it is, whatever names the data has.
    learns_objects, learns_parts = (
        bool(has_text.any()) and not is_frozen(f"decoder/{kind}_embed", run.optimizer.frozen)
        for kind, has_text in zip(
            ("object", "part"), np.split(class_mask, [vocabulary.num_objects]), strict=True
        )
    )
    of_names = ("name_thresholds", "name_scales", "panoptic_source")
    kept = ("mask_thresholds", *(of_names if knew else ()))
    return {
        "prompts_trained": run.data.interactive_batch > 0
        or (bool(start) and start.get("prompts_trained", True)),
        "class_heads_trained": knew or learns_objects or learns_parts,
        "parts_trained": learns_parts or (knew and start.get("parts_trained", True)),
        "image_size": max(run.data.image_size, _canvas_of(start)),
        **{key: start[key] for key in kept if start.get(key)},
    }


def _canvas_of(start: Mapping) -> int:
    """Side of the canvas that a model was made for; released weights have none."""
    is_own = start.get("prompt_preset", "default") == "default"
    return int(start.get("image_size") or 0) if is_own else 0


def default_match() -> dict:
    """The entries of `must_match` for keys at their defaults.

    Sizes that a release added are at their defaults in models of earlier ones.
    """
    sizes = dataclasses.asdict(presets.ModelConfig(backbone=presets.SwinConfig()))
    del sizes["backbone"], sizes["text"]  # of these there are several kinds
    return {"model_config": sizes, **_match(RunConfig())}


def _match(run: RunConfig) -> dict:
    plain = json.loads(json.dumps(run.to_dict()))
    return {
        "seed": run.seed,
        "steps": run.steps,
        "accumulate": [run.accumulate, run.accumulate_per_stream],
        "data": plain["data"] | {"num_workers": 0, "root": ""},
        "text": plain["text"],
        "loss": plain["loss"],
        "optimizer": plain["optimizer"],
        "refit": plain["refit"],
    }


def check_same_start(saved: Mapping, run: RunConfig) -> None:
    """Refuses other initial weights than those a resumed run began with, which would be unused.

    Args:
        saved: meta of the checkpoint.
        run: the starting run; keys without a value (also "required") may have been anything.

    Raises:
        CheckpointError: some differ; all of them are listed.
    """
    before = saved["config"]["model"]
    differing = [
        f"model.{key}: checkpoint {before[key]!r}, this run {now!r}"
        for key in ("warm_start", "backbone_weights", "text_weights", "init")
        if key in before
        and (now := getattr(run.model, key)) not in ("", "required")
        and now != before[key]
    ]
    if differing:
        raise CheckpointError(
            f"the run in the workdir began with other weights: {'; '.join(differing)}. A resumed "
            "run keeps its weights; use the saved values, or another --workdir to start from "
            "these."
        )


def start_or_resume(
    run: RunConfig,
    model: SemanticSAM,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    checkpoints: Checkpoints,
    learned: Sequence[str] = (),
) -> tuple[TrainState, tuple[dict, dict] | None]:
    """Restores the newest step of a run, or creates its initial state; no parameter is created to
    be replaced.

    Args:
        run: the run.
        model: its network.
        tx: its optimiser.
        mesh: where everything lies.
        checkpoints: of its workdir.
        learned: `train.text.learned_names`.

    Returns:
        (state, None for a fresh run or (data position, meta) of the step that is resumed).
    """
    has_ema = run.optimizer.ema > 0
    if checkpoints.latest_step() is not None:
        shapes = parameter_shapes(run, model)
        state, *resumed = checkpoints.restore(abstract_state(shapes, tx, has_ema, mesh))
        return state, tuple(resumed)
    return shard_state(initial_params(run, model, mesh, learned), tx, has_ema, mesh), None


def first_levels(run: RunConfig, model: SemanticSAM) -> dict[str, list]:
    """What the meta says of the levels until an evaluation measures them: as the warm start."""
    if not run.model.warm_start:
        return {"level_order": list(range(model.config.decoder.num_tokens))}
    saved = checkpoint_io.read_meta(zoo.resolve(run.model.warm_start))
    return {key: saved[key] for key in ("level_order", "level_sizes") if saved.get(key)}
