"""What a run takes over from the checkpoint that it starts from."""

import numpy as np

from semsam_jax import config
from semsam_jax.core.model_files import save_model
from semsam_jax.train.warm_start import level_order


def test_levels_stay_ordered_as_they_were_until_an_evaluation(tmp_path):
    """Without it a fine-tuned model's level 1 would be its first token, whatever its size."""
    meta = {"level_order": [2, 1, 3, 0, 4, 5]}
    save_model(tmp_path / "start", {"a": np.zeros(2, np.float32)}, meta)
    run = config.build({"model": {"warm_start": str(tmp_path / "start")}})
    assert level_order(run, 6) == [2, 1, 3, 0, 4, 5]
    assert level_order(config.build({}), 3) == [0, 1, 2]
