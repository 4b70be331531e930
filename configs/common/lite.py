"""Settings shared by all recipes of preset `lite`: canvas, points, loss weights, optimiser."""

from ml_collections import ConfigDict

MASKS = (
    "backbone",
    "pixel_decoder",
    "prompt_encoder",
    "decoder/layers",
    "decoder/norm",
    "decoder/ref_point_head",
    "decoder/bbox_embed",
    "decoder/mask_embed",
    "decoder/mask_window",
    "decoder/iou_head",
)
"""Parameters that decide the masks of prompts and their predicted IoU; frozen, those stay."""


def at_lite_size(config: ConfigDict) -> ConfigDict:
    """Sets canvas, prompts, loss and optimiser of `lite`."""
    config.model.preset = "lite"
    config.data.image_size = 256
    config.data.mask_stride = 2
    config.data.max_instances = 40
    config.data.num_prompts = 24
    config.data.hierarchy = True
    config.data.granularity_balance = 0.5
    config.data.center_clicks = 0.5
    config.data.scale_jitter = (0.6, 1.7)
    config.data.sa1b_jitter = (0.6, 1.7)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.optimizer.schedule = "cosine"
    config.optimizer.ema = 0.98
    config.loss.num_points = 512
    config.loss.match_points = 512
    config.loss.prompt_point_ratio = 0.6
    config.loss.mask_bce = 2.0
    config.loss.score_all_tokens = True
    config.loss.iou_target = "expected"
    config.loss.iou = 5.0
    config.loss.object_class = 1.0
    config.loss.part_class = 1.0
    config.loss.owner_class = 1.0
    config.loss.generic = 0.1
    return config
