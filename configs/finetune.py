r"""Fine-tuning on your own images, from any checkpoint; docs/finetune.md walks through it.

    python -m semsam_jax.main --config=configs/finetune.py:frozen \
        --config.model.warm_start=CHECKPOINT --config.data.custom=FOLDER --workdir=DIR

FOLDER is what an annotation tool exports (COCO, Roboflow, CVAT, Label Studio, FiftyOne, YOLO,
LabelMe), such as annotations/train.json, annotations/val.json and images/; without a split `val`
a tenth is held out. CHECKPOINT is a workdir or the output of `semsam convert`; it decides the
network, the size of the canvas and where class names come from.

    frozen  image encoder fixed; prompts, decoder and heads learn. The least memory.
    lora    everything fixed but the heads; rank-8 updates of all stacked linear layers.
    full    everything learns; the backbone of lite only with --config.model.train_backbone=True.

The model with the best one-click IoU on val is kept in DIR/best. A share of one of the seven
datasets, such as --config.data.datasets.coco=1, mixes it in (or replaces `custom`, at 0).

Hardware: any one card with 16 GB for Swin-T at 1024 px (frozen), or the CPU for `lite`.
Hours: minutes to a few hours, depending on the images; the progress line estimates it.
"""

from ml_collections import ConfigDict

from configs.common.base import base
from configs.joint import SHARES

FROZEN = {
    "frozen": ("backbone", "pixel_decoder", "text_encoder"),
    "lora": (
        "backbone",
        "pixel_decoder",
        "text_encoder",
        "prompt_encoder",
        "decoder/layers",
        "decoder/norm",
        "decoder/ref_point_head",
        "query_selector",
        "denoising",
    ),
    "full": (),
}


def get_config(mode: str = "frozen") -> ConfigDict:
    """Returns the fine-tuning recipe of a mode: frozen, lora or full."""
    config = base()
    config.model.preset = "checkpoint"
    config.model.lora_rank = 8 if mode == "lora" else 0
    config.text.source = "checkpoint"
    config.text.learn_missing = True  # where the names come from a table
    config.data.image_size = 0  # the checkpoint's
    shares = {**dict.fromkeys(SHARES, 0.0), "custom": 1.0}
    config.data.datasets = ConfigDict(shares)
    config.data.granularity = ConfigDict({"any": 1.0})
    config.data.generic_datasets = ConfigDict(shares)
    config.data.interactive_batch = 4
    config.data.generic_batch = 2
    config.data.max_instances = 60
    config.data.num_prompts = 24
    config.data.scale_jitter = (0.7, 1.4)
    config.loss.from_checkpoint = True
    config.loss.num_points = 4096
    config.loss.match_points = 2048
    config.optimizer.frozen = FROZEN[mode]
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 20
    config.optimizer.schedule = "cosine"
    config.optimizer.ema = 0.98
    config.steps = 500
    config.log_every = 20
    config.save_every = 100
    config.eval_every = 50
    config.eval_dataset = "custom"
    config.eval_suites = ("checkpoint",)
    config.eval_images = 100
    config.keep_best = True
    return config
