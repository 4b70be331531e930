r"""What one machine with eight GPUs can train: 20,000 images of SA-1B, 20,000 steps.

    python -m semsam_jax.main --config=configs/eight_gpus.py --config.data.root=DATA \
        --config.model.backbone_weights=swin_tiny_patch4_window7_224.pth --workdir=DIR

One process drives all cards. Swin-T, two rows a card, 16 passes over the images (a fixed 0.18 % of
SA-1B's; two of its archives hold as many). Everything else is configs/sa1b.py; the rate follows the
rule for 16 rows (docs/recipes.md). From released weights: --config.model.warm_start=released.

Hardware: 8 cards of 80 GB; with 24 GB --config.accumulate=2. Not measured.
Published: nothing with this amount of data. Ours: not trained yet.
"""

from ml_collections import ConfigDict

from configs import sa1b
from configs.common.choice import set_rows

IMAGES = 20_000


def get_config(preset: str = "swin_t") -> ConfigDict:
    """Returns the recipe for eight GPUs of a preset: swin_t or swin_l."""
    config = set_rows(sa1b.get_config(preset), 16)
    config.data.subsets.sa1b = IMAGES / 11_185_362
    config.data.box_share = 0.25
    config.loss.detach_iou_target = True
    config.optimizer.warmup_steps = 10
    config.steps = IMAGES
    config.eval_every = 2000
    config.eval_suites = (*config.eval_suites, "box")
    return config
