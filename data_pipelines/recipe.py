"""Turns a recipe's `data` group into settings of the pipeline, for training and `inspect` alike."""

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.mixture import Mixture
from data_pipelines.pipeline import PipelineConfig, StreamConfig
from data_pipelines.schema import BatchShape
from data_pipelines.transforms import geometry
from data_pipelines.transforms.geometry import Augment
from data_pipelines.transforms.prompts import PromptPolicy


def pipeline_config(
    data: Mapping[str, Any], vocab_size: int, *, total_steps: int = 0
) -> PipelineConfig:
    """Makes the settings of the pipeline.

    Args:
        data: the group's keys and values; `semsam_jax.config.DataChoice` documents them.
        vocab_size: names of the vocabulary.
        total_steps: planned steps, for the expected epochs.
    """
    flip = data["flip"]
    ade20k = geometry.ade20k(*data["ade20k_jitter"], flip=flip)
    return PipelineConfig(
        shape=BatchShape(
            image_size=data["image_size"],
            max_instances=data["max_instances"],
            num_prompts=data["num_prompts"],
            max_targets=data["max_targets"],
            mask_stride=data["mask_stride"],
            vocab_size=max(vocab_size, 1),
        ),
        interactive=StreamConfig(
            data["interactive_batch"], Mixture(data["datasets"], data["granularity"])
        ),
        generic=StreamConfig(data["generic_batch"], Mixture(data["generic_datasets"])),
        prompts=PromptPolicy(
            box_share=data["box_share"],
            hierarchy=data["hierarchy"],
            shares=data["prompt_shares"],
            granularity_balance=data["granularity_balance"],
            center_clicks=data["center_clicks"],
            pseudo_hierarchy=data["pseudo_hierarchy"],
        ),
        augments={"sa1b": _jitter(data["sa1b_jitter"], flip), "ade20k": ade20k},
        default_augment=_jitter(data["scale_jitter"], flip),
        num_workers=data["num_workers"],
        # Threads are per worker process: many workers with many threads would hold many rows.
        num_threads=2 if data["num_workers"] else 8,
        total_steps=total_steps,
        verified_classes=data["verified_classes"],
        subsets=data["subsets"],
    )


def _jitter(limits: Sequence[float], flip: float) -> Augment:
    return Augment(flip=flip, min_scale=limits[0], max_scale=limits[1])
