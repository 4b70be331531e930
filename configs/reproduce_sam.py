r"""SAM's own training rule in our model: three tokens, and of them only the best one learns.

    python -m semsam_jax.main --config=configs/reproduce_sam.py --config.data.root=DIR \
        --config.model.backbone_weights=swin_large_patch4_window12_384_22k.pth --workdir=DIR

The many-to-one baseline of the paper: a click has one target; the token whose mask fits it
best takes all of the loss. Everything else is sa1b.py.

Hardware and hours: as sa1b.py:swin_l.
Published (1-IoU at all granularities, 1,000 images of SA-1B): many-to-one 73.2, many-to-many
89.0 (arXiv 2307.04767). Ours: not trained yet.
"""

from ml_collections import ConfigDict

from configs import sa1b


def get_config(preset: str = "swin_l") -> ConfigDict:
    """Returns the many-to-one recipe of a preset: swin_t or swin_l."""
    config = sa1b.get_config(preset)
    config.model.num_tokens = 3
    config.data.max_targets = 1
    config.loss.many_to_one = True
    config.loss.score_all_tokens, config.loss.iou_target = False, "best"
    return config
