r"""SA-1B alone, class-agnostic: the recipe of the released weights, and the first of two stages.

    python -m semsam_jax.main --config=configs/sa1b.py:swin_t --config.data.root=DATA \
        --config.model.backbone_weights=swin_tiny_patch4_window7_224.pth --workdir=runs/sa1b

docs/recipes.md says where the weights come from; configs/joint.py continues from the result.
Differs from joint.py where the released code does: clicks only, no jitter, no class names. The
target of the predicted IoU is not that of the released code, whose rule is
--config.loss.score_all_tokens=False --config.loss.iou_target=best, with a target that is not
detached.
64 images a step for 368,750 steps are about two epochs. `swin_t,share=0.03` trains on 3 % of the
images (0.01, 0.03, 0.15 and 0.3 are the shares that have been published), for that share of the
steps but at least a tenth of them; `,rows=N` changes the rows per step and everything that depends
on them (docs/recipes.md).

Hardware: 64 rows a step; docs/scale.md says how many of them a chip takes. The authors used
64 V100 of 32 GB, one row each. On other machines keep 64 rows, with --config.accumulate where
they do not fit.
Hours: see the table in docs/recipes.md; estimated from counted arithmetic, not measured.
Published with this recipe (1-click mIoU on COCO val2017, Max | Oracle): Swin-T 54.5 | 73.8,
Swin-L 57.0 | 74.2 (arXiv 2307.04767); the released weights are listed with 55.1 | 74.1
for Swin-L. Ours: not trained yet.
"""

from ml_collections import ConfigDict

from configs.common.base import base
from configs.common.choice import ROWS, parse, set_rows
from configs.common.full import at_full_size


def get_config(choice: str = "swin_t") -> ConfigDict:
    """Returns the SA-1B recipe of a preset: swin_t or swin_l (`,share=F`, `,rows=N`)."""
    preset, numbers = parse(choice, share=1.0, rows=ROWS)
    config = at_full_size(base(), preset)
    config.text.source = "none"
    config.data.datasets = ConfigDict({"sa1b": 1.0})
    config.data.granularity = ConfigDict({"any": 1.0})
    config.data.subsets.sa1b = numbers["share"]
    config.data.interactive_batch = 64
    config.data.generic_batch = 0
    config.data.box_share = 0.0
    config.loss.detach_iou_target = False
    config.optimizer.warmup_steps = 0
    # Without names there is no PQ; masks of the whole image are scored with classes ignored.
    config.eval_suites = ("one_click", "levels", "proposals")
    config.eval_part_dataset = "pascal_part"
    # Steps 327,778 and 355,092 of 368,750.
    config.optimizer.decay_at = (0.88889, 0.96296)
    config.steps = round(config.steps * min(1.0, max(numbers["share"], 0.1)))
    return set_rows(config, int(numbers["rows"]))
