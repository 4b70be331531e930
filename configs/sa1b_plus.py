r"""SA-1B and one labelled set: the recipes behind the published semantic numbers.

    python -m semsam_jax.main --config=configs/sa1b_plus.py:coco --config.data.root=DATA \
        --config.model.backbone_weights=swin_tiny_patch4_window7_224.pth \
        --config.model.text_weights=CLIP.safetensors --workdir=DIR

`coco` or `pascal_part`, with Swin-T: clicks on a tenth of SA-1B, and the labelled set without
prompts, 16 + 16 rows a step. COCO is seen 50 times, 16 rows at a rate of 1e-4, as in Mask
DINO and OpenSeeD; PASCAL Part 138 times in 40,000 steps (the authors' number is not published).

Hardware: 32 rows a step: one v5e-16 slice, or 8 cards of 80 GB with --config.accumulate=2.
Published for Swin-T (arXiv 2307.04767): COCO with a tenth of SA-1B: PQ 55.2, mask
AP 47.4, box AP 52.3; PASCAL Part with SA-1B: part AP 28.0 of boxes, 31.4 of masks.
Ours: not trained yet.
"""

from ml_collections import ConfigDict

from configs.common.base import base
from configs.common.full import at_full_size

STEPS = {"coco": 368_750, "pascal_part": 40_000}
SUITES = {"coco": ("one_click", "levels", "generic"), "pascal_part": ("one_click", "levels")}


def get_config(labelled: str = "coco") -> ConfigDict:
    """Returns the recipe of SA-1B with a labelled set: coco or pascal_part."""
    if labelled not in STEPS:
        raise ValueError(f"{labelled}: not one of these recipes; use {' or '.join(STEPS)}.")
    config = at_full_size(base(), "swin_t")
    config.text.source = "encoder"
    config.data.datasets = ConfigDict({"sa1b": 1.0})
    config.data.granularity = ConfigDict({"any": 1.0})
    config.data.subsets.sa1b = 0.1
    config.data.generic_datasets = ConfigDict({labelled: 1.0})
    config.data.interactive_batch = config.data.generic_batch = 16
    config.data.hierarchy = True
    config.optimizer.decay_at = (0.88889, 0.96296)
    config.eval_suites = SUITES[labelled]
    config.eval_dataset = labelled
    config.eval_part_dataset = "pascal_part" if labelled == "pascal_part" else ""
    config.steps = STEPS[labelled]
    return config
