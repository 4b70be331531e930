"""OpenSeeD's models: the generic branch with a text tower, and no prompts.

Semantic-SAM was made from OpenSeeD: backbone, pixel decoder, decoder, text tower and the heads of
classes, masks and boxes have the same names and shapes in both. What only prompts and parts use is
in no OpenSeeD file; it is drawn at random here, and the model says that it was never trained
(`prompts_trained`, `parts_trained`). OpenSeeD's decoupled decoder also has learned queries for
stuff, which have no counterpart here: such files are refused.

Source: IDEA-Research/OpenSeeD at 5dc694e, `openseed/body/decoder`; arXiv 2303.08131.
"""

from collections.abc import Mapping

import numpy as np

from semsam_jax.convert.rules import rules_for
from semsam_jax.core.errors import ConversionError
from semsam_jax.models.presets import ModelConfig

_PREDICTOR = "sem_seg_head.predictor."
_LEARNED_QUERIES = (f"{_PREDICTOR}query_feat.weight", f"{_PREDICTOR}query_embed.weight")
_NOT_IN_OPENSEED = (
    "prompt_encoder/",
    "decoder/iou_head/",
    "decoder/part_embed",
)
UNTRAINED = {"prompts_trained": False, "parts_trained": False}
"""What the meta of such a model says."""


def is_openseed(state: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict holds a generic branch and nothing for prompts."""
    return f"{_PREDICTOR}enc_output.weight" in state and not any(
        f"{_PREDICTOR}{name}" in state
        for name in ("mask_tokens.weight", "pb_embedding.weight", "label_enc.weight")
    )


def check(state: Mapping[str, np.ndarray], where: str) -> None:
    """Raises ConversionError for a model with learned queries (the decoupled decoder)."""
    found = [key for key in _LEARNED_QUERIES if key in state]
    if found:
        raise ConversionError(
            f"{where}: a model of OpenSeeD with the decoupled decoder: "
            f"{len(state[found[0]])} learned queries for stuff ({', '.join(found)}), which have no "
            f"counterpart here; its backbone alone is taken by "
            f"`semsam convert --preset swin_t|swin_l --backbone FILE --out DIR`."
        )


def complete(
    state: Mapping[str, np.ndarray], config: ModelConfig
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Adds what prompts and parts need.

    Args:
        state: of OpenSeeD, names without `model.`.
        config: of the model.

    Returns:
        The state dict with random tensors for what is missing (embeddings with the variance 1,
        matrices with that of a linear layer, biases 0), and their names.
    """
    rng = np.random.default_rng(0)
    full, drawn = dict(state), []
    for rule in rules_for(config):
        if not rule.path.startswith(_NOT_IN_OPENSEED):
            continue
        for key in rule.keys:
            if key in full:
                continue
            scale = 1.0
            if not rule.path.startswith("prompt_encoder/"):
                scale = 0.0 if len(rule.shape) == 1 else (2 / sum(rule.shape)) ** 0.5
            full[key] = (scale * rng.standard_normal(rule.shape)).astype(np.float32)
            drawn.append(key)
    return full, drawn
