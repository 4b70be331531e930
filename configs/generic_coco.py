r"""COCO panoptic alone, without prompts: the generic branch as Mask DINO and OpenSeeD train it.

    python -m semsam_jax.main --config=configs/generic_coco.py --config.data.root=DIR \
        --config.model.backbone_weights=swin_tiny_patch4_window7_224.pth \
        --config.model.text_weights=CLIP.safetensors --workdir=DIR

Batch 16 for 368,750 steps is 50 epochs of train2017, as in those two projects.

Hardware: 16 rows a step: one v5e-16 slice, or two 80 GB cards.
Hours: see the table in docs/recipes.md; estimated from counted arithmetic, not measured.
Published for Swin-T from COCO alone: PQ 54.6, mask AP 46.1, box AP 50.1; with a tenth of SA-1B
added 55.2 | 47.4 | 52.3 (arXiv 2307.04767). Ours: not trained yet.
"""

from ml_collections import ConfigDict

from configs.common.base import base
from configs.common.full import at_full_size


def get_config(preset: str = "swin_t") -> ConfigDict:
    """Returns the COCO recipe of a preset: swin_t or swin_l."""
    config = at_full_size(base(), preset)
    config.text.source = "encoder"
    config.data.generic_datasets = ConfigDict({"coco": 1.0})
    config.data.interactive_batch = 0
    config.data.generic_batch = 16
    config.optimizer.decay_at = (0.88889, 0.96296)
    config.eval_suites = ("one_click", "generic")
    return config
