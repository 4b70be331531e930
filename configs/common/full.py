"""Settings shared by all recipes of the paper's networks."""

from ml_collections import ConfigDict


def at_full_size(config: ConfigDict, preset: str) -> ConfigDict:
    """Sets precision, memory, schedule and logging of Swin-T and Swin-L on accelerators."""
    config.model.preset = preset
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.num_workers = 16
    # The predicted IoU of every token learns the IoU to expect for its click; the released code
    # teaches matched tokens alone (score_all_tokens=False, iou_target=best).
    config.loss.score_all_tokens = True
    config.loss.iou_target = "expected"
    config.loss.iou_every_layer = False
    # Swin-L's parameters and optimiser state take 3.4 GB: split over all chips.
    config.fsdp = -1 if preset == "swin_l" else 1
    config.steps = 368_750
    config.log_every = 50
    config.save_every = 2000
    config.save_every_sec = 900.0
    config.eval_every = 20_000
    config.eval_images = 500
    return config
