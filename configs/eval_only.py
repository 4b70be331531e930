r"""Evaluation alone, through the same launcher as a training run.

    python -m semsam_jax.main --config=configs/eval_only.py --workdir=OUT \
        --config.evaluate.checkpoint=DIR --config.evaluate.root=DIR
    python -m semsam_jax.main --config=configs/eval_only.py:generic --workdir=OUT \
        --config.evaluate.checkpoint=DIR --config.evaluate.root=DIR \
        --config.evaluate.dataset=ade20k

Tables and pictures are written to OUT. On several hosts every process takes its share of the
images; the same command resumes an interrupted evaluation. `semsam evaluate` does the same with
shorter flags. semsam_jax/evals/README.md lists the command for each row of the paper's tables.
"""

from ml_collections import ConfigDict


def get_config(suites: str = "one_click,baselines") -> ConfigDict:
    """Returns an evaluation of some suites, separated by commas."""
    return ConfigDict(
        {
            "evaluate": {
                # Folder of a model or training run, swin_t, swin_l, hf://OWNER/NAME, or last; "" is
                # the packaged model.
                "checkpoint": "",
                "suites": tuple(suites.split(",")),
                # One sub-folder per source: clicks and boxes on all of them, instead of suites.
                "folder": "",
                # One sub-folder per dataset; "" is the embedded sample.
                "root": "",
                "dataset": "coco",
                "split": "val",
                # Images, 0 for all.
                "limit": 0,
                # Which masks are prompted: "any", "object" or "part".
                "view": "any",
                # Frame of the scores: "square", "released_v1" or "original_size"; "" is
                # released_v1 for released weights and square for others.
                "protocol": "",
                # Frame of the image; 0 and "" as the protocol says.
                "image_size": 0,
                "short_side": 0,
                "canvas": "",
                # Speed and memory only.
                "prompts_per_call": 16,
                "images_per_device": 1,
                # Clicks per side of the grid of the suites proposals, everything and otq.
                "points_per_side": 32,
                # Write what was measured into the checkpoint: order and sizes of the levels,
                # thresholds of masks, thresholds of names, what labels whole images.
                "write_levels": False,
                "write_masks": False,
                "write_names": False,
                "write_panoptic": False,
            }
        }
    )
