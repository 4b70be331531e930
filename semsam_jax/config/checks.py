"""Checks of a configuration that its types do not make."""

import functools

from semsam_jax.config.fields import PROMPT_KINDS, RunConfig, model_config
from semsam_jax.core.config_values import one_of
from semsam_jax.core.errors import ConfigError
from semsam_jax.evals.options import SUITE_NAMES
from semsam_jax.models import similarity_init
from semsam_jax.models.layers import REMAT_POLICIES


def check(run: RunConfig) -> None:
    """Checks everything that involves several keys, or the allowed values of one.

    Raises:
        ConfigError: names the key and what to do.
    """
    _check_ranges(run)
    model = model_config(run.model)
    one_of("model.init", run.model.init, ("random", "similarity"))
    if run.model.init == "similarity":
        similarity_init.check_fits(model)
    one_of("model.dtype", run.model.dtype, ("float32", "bfloat16"))
    one_of("model.remat", run.model.remat, tuple(REMAT_POLICIES))
    one_of("text.source", run.text.source, ("table", "encoder", "none"))
    one_of("optimizer.schedule", run.optimizer.schedule, ("step", "cosine"))
    data = run.data
    if run.text.source == "encoder" and model.text is None:
        raise ConfigError(
            f"text.source: preset {run.model.preset!r} has no text tower; use text.source=table."
        )
    if run.text.learn_missing and run.text.source != "table":
        raise ConfigError(
            f"text.learn_missing: learned embeddings need text.source=table, got "
            f"{run.text.source!r}; set text.source=table or text.learn_missing=False."
        )
    if run.text.source == "none" and data.generic_batch:
        raise ConfigError(
            "text.source: the generic stream needs class names; set text.source to table or "
            "encoder, or data.generic_batch=0."
        )
    if data.image_size < 32 or data.image_size % 32:
        raise ConfigError(f"data.image_size: {data.image_size} is not a multiple of 32.")
    if data.mask_stride < 1 or data.image_size % (8 * data.mask_stride):
        raise ConfigError(
            f"data.mask_stride: {data.mask_stride} does not fit image_size {data.image_size}; "
            f"image_size must be a multiple of 8 * mask_stride."
        )
    for name in run.eval_suites:
        one_of("eval_suites", name, SUITE_NAMES)
    if "part" in run.eval_suites and run.eval_part_dataset:
        raise ConfigError(
            f"eval_suites: part would be measured on {run.eval_dataset} and on eval_part_dataset "
            f"{run.eval_part_dataset} under the same names; leave out one of the two."
        )
    if run.loss.many_to_one and data.max_targets != 1:
        raise ConfigError(
            f"loss.many_to_one: wants one target per prompt, got data.max_targets "
            f"{data.max_targets}; set data.max_targets=1."
        )
    if run.loss.granularity and not model.decoder.granularity_token:
        raise ConfigError(
            f"loss.granularity: {run.loss.granularity}, but the model has no token for "
            f"granularities; set model.granularity_token=True or loss.granularity=0."
        )
    if run.refit.images and (run.text.source != "table" or not data.interactive_batch):
        raise ConfigError(
            f"refit.images: {run.refit.images}; refitting needs prompts and a table of names; set "
            f"text.source=table and data.interactive_batch above 0, or refit.images=0."
        )
    if data.pseudo_hierarchy and not run.loss.granularity:
        raise ConfigError(
            f"data.pseudo_hierarchy: {data.pseudo_hierarchy}, but loss.granularity is 0, so "
            f"nothing is trained on the pseudo parts; set loss.granularity above 0 or "
            f"data.pseudo_hierarchy=0."
        )
    if data.pseudo_hierarchy and data.max_targets < 2:
        raise ConfigError(
            f"data.pseudo_hierarchy: {data.pseudo_hierarchy}, and data.max_targets "
            f"{data.max_targets} leaves no room for parts; set data.max_targets=2 or more, or "
            f"data.pseudo_hierarchy=0."
        )
    if not 1 <= data.max_targets <= model.decoder.num_tokens:
        raise ConfigError(
            f"data.max_targets: {data.max_targets}; must be between 1 and "
            f"{model.decoder.num_tokens}, the number of tokens of a prompt."
        )
    one_of("loss.iou_target", run.loss.iou_target, ("best", "expected"))
    if run.loss.iou_target != "best" and not run.loss.score_all_tokens:
        raise ConfigError(
            f"loss.iou_target: {run.loss.iou_target!r} needs loss.score_all_tokens=True."
        )
    if not 0 <= run.loss.prompt_point_ratio < 1:
        raise ConfigError(
            f"loss.prompt_point_ratio: {run.loss.prompt_point_ratio}; must lie in 0..1, below 1."
        )
    if data.interactive_batch + data.generic_batch == 0:
        raise ConfigError(
            "data.interactive_batch, data.generic_batch: both are 0; set one of them."
        )
    for name in ("datasets", "granularity", "generic_datasets", "prompt_shares"):
        for key, share in getattr(data, name).items():
            if share < 0:
                raise ConfigError(f"data.{name}.{key}: {share}; must not be negative.")
    for name, share in data.subsets.items():
        if name not in {*data.datasets, *data.generic_datasets, "sa1b"}:
            raise ConfigError(
                f"data.subsets.{name}: no dataset of this run; it has "
                f"{', '.join(sorted({*data.datasets, *data.generic_datasets}))}."
            )
        if not 0 < share <= 1:
            raise ConfigError(f"data.subsets.{name}: {share}; must lie in 0..1, above 0.")
    _check_custom(run)
    for kind in data.prompt_shares:
        one_of("data.prompt_shares", kind, PROMPT_KINDS)
    for name in ("scale_jitter", "sa1b_jitter", "ade20k_jitter"):
        low, high = getattr(data, name)
        if not 0 < low <= high:
            raise ConfigError(f"data.{name}: {(low, high)}; expected 0 < low <= high.")


def _check_custom(run: RunConfig) -> None:
    """Refuses a custom folder that nothing reads, and options of one that is not given."""
    data = run.data
    for key in ("custom_images", "custom_boxes_only"):
        if getattr(data, key) and not data.custom:
            raise ConfigError(
                f"data.{key}: {getattr(data, key)}: no effect without data.custom; give the "
                f"folder of the custom dataset there, or leave it out."
            )
    streams = (data.interactive_batch, data.datasets), (data.generic_batch, data.generic_datasets)
    is_used = any(rows and shares.get("custom", 0.0) for rows, shares in streams)
    is_scored = run.eval_images and "custom" in (run.eval_dataset, run.eval_part_dataset)
    if data.custom and not (is_used or is_scored):
        raise ConfigError(
            f"data.custom: {data.custom}: nothing reads it, because the dataset custom has no "
            f"share; set --config.data.datasets.custom=1 or leave it out."
        )


AT_LEAST_1 = [
    "steps",
    "log_every",
    "save_every",
    "keep",
    "accumulate",
    "data.max_instances",
    "data.num_prompts",
    "loss.num_points",
    "loss.match_points",
    "loss.oversample_ratio",
    "refit.passes",
    "refit.rows",
]
NOT_NEGATIVE = [
    "save_every_sec",
    "time_limit_sec",
    "max_skipped_in_a_row",
    "max_skipped",
    "slices",
    "seed",
    "eval_every",
    "eval_images",
    "model.num_tokens",
    "model.lora_rank",
    "data.interactive_batch",
    "data.generic_batch",
    "data.num_workers",
    "optimizer.learning_rate",
    "optimizer.backbone_factor",
    "optimizer.text_factor",
    "optimizer.weight_decay",
    "optimizer.warmup_steps",
    "loss.mask_bce",
    "loss.dice",
    "loss.l1",
    "loss.giou",
    "loss.iou",
    "loss.object_class",
    "loss.part_class",
    "loss.owner_class",
    "loss.class_balance",
    "loss.interactive",
    "loss.generic",
    "loss.granularity",
    "loss.nesting",
    "refit.images",
    "refit.learning_rate",
]
SHARES = [
    "data.box_share",
    "data.flip",
    "data.granularity_balance",
    "data.center_clicks",
    "data.pseudo_hierarchy",
    "loss.importance_ratio",
]


def _check_ranges(run: RunConfig) -> None:
    """Checks each number alone."""

    def value_of(key: str) -> float | int:
        return functools.reduce(getattr, key.split("."), run)

    for key in AT_LEAST_1:
        if value_of(key) < 1:
            raise ConfigError(f"{key}: {value_of(key)}; must be at least 1.")
    for key in NOT_NEGATIVE:
        if value_of(key) < 0:
            raise ConfigError(f"{key}: {value_of(key)}; must not be negative.")
    for key in SHARES:
        if not 0 <= value_of(key) <= 1:
            raise ConfigError(f"{key}: {value_of(key)}; must lie in 0..1.")
    if run.seed >= 2**32:
        raise ConfigError(f"seed: {run.seed}; must be below 2**32.")
    if run.fsdp < 1 and run.fsdp != -1:
        raise ConfigError(
            f"fsdp: {run.fsdp}; must be at least 1, or -1 for all devices of a slice."
        )
    if run.optimizer.clip_norm <= 0:
        raise ConfigError(f"optimizer.clip_norm: {run.optimizer.clip_norm}; must be above 0.")
    if not 0 <= run.optimizer.ema < 1:
        raise ConfigError(f"optimizer.ema: {run.optimizer.ema}; must lie in 0..1, below 1.")
    first, second = run.optimizer.decay_at
    if not 0 <= first <= second <= 1:
        raise ConfigError(
            f"optimizer.decay_at: {run.optimizer.decay_at}; expected two fractions of the steps, "
            f"the smaller one first."
        )


def check_batch(run: RunConfig, num_shards: int) -> None:
    """Checks that both quotas are divisible by the devices; ConfigError names the fix."""
    pieces = num_shards * run.accumulate
    for name in ("interactive_batch", "generic_batch"):
        rows = getattr(run.data, name)
        if rows % pieces:
            times = f" x {run.accumulate} micro-batches" if run.accumulate > 1 else ""
            raise ConfigError(
                f"data.{name}: {rows} is not divisible by the {num_shards} batch shards "
                f"(devices){times}; use a multiple of {pieces}."
            )
