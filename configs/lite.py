r"""Preset `lite` on many masks, in three stages: masks, a finish at higher resolution, names.

    semsam train --config=configs/lite.py --config.data.root=DATA --workdir=runs/lite
    semsam train --config=configs/lite.py:finish --config.data.root=DATA \
        --config.model.warm_start=runs/lite --workdir=runs/lite_finish
    semsam train --config=configs/lite.py:names \
        --config.model.warm_start=runs/lite_finish --config.data.custom=NAMED \
        --workdir=runs/lite_names
    semsam convert runs/lite_names --out runs/lite_model --dtype float16 --image-size 384

DATA/sa1b holds images and masks in the layout of SA-1B, with all masks of an image in one file, so
that a click is trained with every mask under it. An image may be listed several times; docs/lite.md
says how to mix sources. The first stage has a constant learning rate: it may be stopped at any
time, continued for as long as it helps, and finished from any of its checkpoints. NAMED is a folder
in COCO format whose categories are the class names; names that the stored table of embeddings lacks
get an embedding that is learned and stored with the model. That stage trains only the class heads,
on cached features; each image is encoded once (`semsam_jax.train.refit`). The last command sets the
canvas of inference: a larger one than that of training finds smaller masks.

Hardware: CPUs or one small card. Hours: docs/lite.md.
"""

from ml_collections import ConfigDict

from configs.common.base import base
from configs.common.lite import MASKS, at_lite_size
from configs.joint import SHARES

# The last ten blocks of the backbone learn; these keep their ImageNet weights, without a gradient.
_FIRST_BLOCKS = ("backbone/stem", *(f"backbone/block{number}" for number in range(11)))
_ALL_BUT_NAMES = (*MASKS, "granularity_token", "query_selector", "denoising")


def get_config(stage: str = "masks") -> ConfigDict:
    """Returns the recipe of a stage: masks, finish or names."""
    if stage not in ("masks", "finish", "names"):
        raise ValueError(f"{stage}: not a stage of this recipe; use masks, finish or names.")
    config = at_lite_size(base())
    config.data.granularity = ConfigDict({"any": 1.0})
    config.data.interactive_batch = 4
    config.data.generic_batch = 0
    config.data.num_prompts = 32
    config.log_every = 50
    config.save_every = 500
    config.model.granularity_token = True
    # In the stage `names` too, which trains no masks: fine-tuning continues with a model's loss.
    config.loss.iou_every_layer = False
    config.loss.granularity = 0.3
    if stage != "names":
        config.data.datasets = ConfigDict({"sa1b": 1.0})
        config.text.source = "none"
        config.data.pseudo_hierarchy = 0.5
        config.model.train_backbone = True
        config.optimizer.frozen = _FIRST_BLOCKS
    if stage == "masks":
        config.model.backbone_weights = "imagenet"
        config.model.init = "similarity"
        config.optimizer.schedule = "step"
        config.optimizer.decay_at = (0.97, 0.99)
        config.optimizer.ema = 0.998
        config.steps = 60_000
        return config
    config.model.warm_start = "required"
    config.data.image_size = 320
    if stage == "finish":
        config.optimizer.learning_rate = 6e-4
        config.optimizer.ema = 0.99
        config.steps = 350
        return config
    config.data.datasets = ConfigDict({**dict.fromkeys(SHARES, 0.0), "custom": 1.0})
    config.data.box_share = 0.5
    config.text.learn_missing = True
    config.loss.class_balance = 0.2
    config.optimizer.frozen = _ALL_BUT_NAMES
    config.steps = 1  # the minimum of a run; the heads are trained after it
    config.refit.images = 3_000
    config.refit.passes = 12
    return config
