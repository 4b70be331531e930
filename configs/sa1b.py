"""SA-1B alone, class-agnostic: the recipe of the released Swin-T and Swin-L weights.

    python -m semsam_jax.main --config=configs/sa1b.py:swin_t --config.data.root=DIR --workdir=DIR

Differs from joint.py where the released code does: clicks only, no jitter, the IoU target is
not detached, no class names. 64 images a step for 368,750 steps are about two epochs.

Hardware: 64 rows a step; docs/scale.md says how many of them a chip takes. The authors used
64 V100 of 32 GB, one row each. On other machines keep 64 rows, with --config.accumulate where
they do not fit.
Hours: see the table in docs/recipes.md; estimated from counted arithmetic, not measured.
Published with this recipe (1-click mIoU on COCO val2017, Max | Oracle): Swin-T 54.5 | 73.8,
Swin-L 57.0 | 74.2 (arXiv 2307.04767, table 2); the released weights are listed with 55.1 | 74.1
for Swin-L. Ours: not trained yet.
"""

from ml_collections import ConfigDict

from configs.common.base import base
from configs.common.full import at_full_size


def get_config(preset: str = "swin_t") -> ConfigDict:
    """Returns the SA-1B recipe of a preset: swin_t or swin_l."""
    config = at_full_size(base(), preset)
    config.text.source = "none"
    config.data.datasets = ConfigDict({"sa1b": 1.0})
    config.data.granularity = ConfigDict({"any": 1.0})
    config.data.interactive_batch = 64
    config.data.generic_batch = 0
    config.data.box_share = 0.0
    config.loss.detach_iou_target = False
    config.optimizer.warmup_steps = 0
    # Steps 327,778 and 355,092 of 368,750.
    config.optimizer.decay_at = (0.88889, 0.96296)
    return config
