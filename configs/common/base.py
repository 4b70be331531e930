"""Defaults shared by every configuration; each key is a field of semsam_jax.config.RunConfig."""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """Returns the groups that every configuration fills."""
    return ConfigDict(
        {
            "model": {
                "preset": "lite",
                # Compute dtype; parameters, norms, coordinates and losses stay float32.
                "dtype": "float32",
                # What the backward pass recomputes: "none", "dots" or "full".
                "remat": "none",
                # "similarity": an untrained lite already segments (models/similarity_init.py).
                "init": "random",
                # Checkpoint folder whose parameters start the run.
                "warm_start": "",
                # "imagenet" (lite) or a .pth of an ImageNet Swin.
                "backbone_weights": "",
                # .pth of a CLIP-layout text tower.
                "text_weights": "",
                # Tokens of a prompt, 0 for the preset's; rank of LoRA updates, 0 for none.
                "num_tokens": 0,
                "lora_rank": 0,
                # A projection of its own for what a part belongs to; 0: the preset's log scale.
                "part_owner": True,
                "logit_scale": 0.0,
            },
            "data": {
                # One sub-folder per dataset; "" is the embedded sample.
                "root": "",
                # A folder of your own, as an annotation tool exports it: the dataset "custom".
                "custom": "",
                # Where its images are, if not where its file names lead; boxes, not outlines.
                "custom_images": "",
                "custom_boxes_only": False,
                "datasets": {},
                "granularity": {},
                "generic_datasets": {},
                "interactive_batch": 8,
                "generic_batch": 4,
                "image_size": 1024,
                "mask_stride": 1,
                "max_instances": 100,
                "num_prompts": 60,
                "max_targets": 6,
                "box_share": 0.25,
                "hierarchy": False,
                # How a row's prompts are divided among its instances; all 0 is evenly.
                "prompt_shares": {"object": 0.0, "part": 0.0, "agnostic": 0.0},
                "granularity_balance": 0.0,
                # Share of the clicks at the deepest point of their mask.
                "center_clicks": 0.0,
                "flip": 0.5,
                "scale_jitter": (0.1, 2.0),
                "sa1b_jitter": (0.99, 1.01),
                "ade20k_jitter": (0.5, 2.0),
                "num_workers": 0,
                # The 91 native part names with limbs above their halves, instead of 30 words.
                "pascal_part_tree": False,
                # Part levels of ADE20k's full release, as masks without a class.
                "ade20k_parts": False,
                # Negatives only where an image is annotated for a class.
                "verified_classes": True,
                # Share of a dataset's images that is used.
                "subsets": {"sa1b": 1.0},
            },
            "text": {"source": "table", "table": ""},
            "optimizer": {
                "learning_rate": 1e-4,
                "backbone_factor": 0.1,
                "text_factor": 0.1,
                "weight_decay": 0.05,
                "clip_norm": 0.01,
                "warmup_steps": 10,
                "schedule": "step",
                "decay_at": (0.9, 0.95),
                "ema": 0.0,
                "frozen": (),
            },
            "loss": {
                "num_points": 12544,
                "match_points": 12544,
                "mask_bce": 5.0,
                "dice": 5.0,
                "l1": 5.0,
                "giou": 2.0,
                "iou": 1.0,
                "object_class": 4.0,
                "part_class": 4.0,
                "owner_class": 4.0,
                "many_to_one": False,
                "detach_iou_target": True,
                "score_all_tokens": False,
                "iou_target": "best",
                "iou_every_layer": True,
                # Share of the points of prompts that lie near them.
                "prompt_point_ratio": 0.0,
                "interactive": 1.0,
                "generic": 1.0,
                # What is left as it is here is as the warm start was trained.
                "from_checkpoint": False,
            },
            "steps": 1,
            "seed": 0,
            # Devices that share one copy of the parameters; slices on a slower network, 0: as
            # the devices say.
            "fsdp": 1,
            "slices": 0,
            "log_every": 20,
            "save_every": 500,
            "eval_every": 0,
            "keep": 2,
            "eval_images": 0,
            "time_limit_sec": 0.0,
            # Micro-batches per step; the streams as micro-batches of their own.
            "accumulate": 1,
            "accumulate_per_stream": False,
            # Whose validation images; keep the best model by them in WORKDIR/best.
            "eval_dataset": "coco",
            # On whose validation images AP of parts is measured, "" for none.
            "eval_part_dataset": "",
            # What is measured on them, beside one_click: levels, box, granularity, interactive,
            # generic, part, baselines.
            "eval_suites": ("one_click",),
            "keep_best": False,
        }
    )
