"""Builds a checked `RunConfig` from a ConfigDict, and fills in what a checkpoint says."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from semsam_jax.config.checks import check
from semsam_jax.config.fields import CHECKPOINT, RANDOM, LossChoice, RunConfig
from semsam_jax.core.config_values import build_dataclass
from semsam_jax.core.errors import ConfigError
from semsam_jax.evals.options import EvalOptions
from semsam_jax.models import presets


def build(config: Mapping | ConfigDict) -> RunConfig:
    """Builds a checked RunConfig from a (possibly partial) nested mapping.

    Raises:
        ConfigError: unknown key, wrong type, or inconsistent values.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    run = build_dataclass(RunConfig, values, "config")
    if run.text.source == CHECKPOINT and run.text.table:
        raise ConfigError(
            f"text.table: {run.text.table}: no effect with text.source=checkpoint, which takes "
            f"the names from where the checkpoint had them; set text.source=table, or leave out "
            f"text.table."
        )
    if run.model.warm_start == RANDOM:
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, warm_start=""))
    if not needs_checkpoint(run):
        check(run)
    elif not run.model.warm_start:
        raise ConfigError(
            "model.warm_start: this recipe starts from a checkpoint; give it with "
            "--config.model.warm_start=DIR (lite for the packaged model, a workdir, or the --out "
            "of semsam convert)."
        )
    return run


def build_evaluation(config: Mapping | ConfigDict, out: str) -> EvalOptions:
    """Builds checked options from a config with the single group `evaluate` (configs/eval_only.py).

    Raises:
        ConfigError: unknown key, wrong type, or inconsistent values.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    group = values.pop("evaluate")
    if values:
        raise ConfigError(
            f"config.{next(iter(values))}: an evaluation has only the group evaluate; training "
            f"is another config."
        )
    return dataclasses.replace(build_dataclass(EvalOptions, group, "config.evaluate"), out=out)


def inherit_from_checkpoint(run: RunConfig, meta: Mapping) -> RunConfig:
    """Fills in the values that a run takes from the checkpoint that it starts from.

    Args:
        run: with `model.preset`, `text.source` or `eval_suites` "checkpoint", `data.image_size`
            0 or `loss.from_checkpoint`; everything else stays, but `text.learn_missing` is for
            checkpoints with a table of names. A token for any granularity may be added to the
            checkpoint's.
        meta: of the checkpoint.

    Raises:
        ConfigError: the checkpoint does not fit the rest of the configuration.
    """
    model, data, text = run.model, run.data, run.text
    if model.preset == CHECKPOINT:
        decoder = meta["model_config"]["decoder"]
        tokens, has_seventh = decoder["num_tokens"], decoder.get("granularity_token", False)
        preset = presets.model_config(meta["preset"])
        changed = 0 if tokens == preset.decoder.num_tokens else tokens
        changes = {
            "num_tokens": model.num_tokens or changed,
            "granularity_token": model.granularity_token or has_seventh,
        }
        model = dataclasses.replace(model, preset=meta["preset"], **changes)
    if data.image_size == 0:
        data = dataclasses.replace(data, image_size=int(meta.get("image_size") or 1024))
    if text.source == CHECKPOINT:
        known = (meta.get("class_heads_trained") and meta.get("text")) or {"source": "none"}
        learns = text.learn_missing and known["source"] == "table"  # a tower lacks no name
        text = dataclasses.replace(
            text, source=known["source"], table=known.get("table") or "", learn_missing=learns
        )
        if text.source == "none":
            # Such a checkpoint has no names: rows of the generic stream become interactive.
            rows = data.interactive_batch + data.generic_batch
            data = dataclasses.replace(data, interactive_batch=rows, generic_batch=0)
    suites = run.eval_suites
    if suites == (CHECKPOINT,):
        has_names = text.source != "none" and run.eval_dataset != "sa1b"
        named = ("generic", "names") if data.generic_batch else ("names",)
        suites = ("one_click", *named) if has_names else ("one_click",)
    loss = _inherit_loss(run.loss, meta) if run.loss.from_checkpoint else run.loss
    run = dataclasses.replace(run, model=model, data=data, text=text, loss=loss, eval_suites=suites)
    check(run)
    return run


def _inherit_loss(loss: LossChoice, meta: Mapping) -> LossChoice:
    """The loss that a checkpoint was trained with; converted checkpoints do not state it."""
    trained = (meta.get("config") or {}).get("loss", {})
    free = (f for f in dataclasses.fields(loss) if getattr(loss, f.name) == f.default)
    taken = {f.name: trained[f.name] for f in free if f.name in trained}
    return dataclasses.replace(loss, **taken | {"from_checkpoint": False})


def needs_checkpoint(run: RunConfig) -> bool:
    """Whether `inherit_from_checkpoint` has values to fill in."""
    choices = run.model.preset, run.text.source, *run.eval_suites
    return CHECKPOINT in choices or run.data.image_size == 0 or run.loss.from_checkpoint
