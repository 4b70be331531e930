"""Similarity initialisation: an untrained network segments pixels similar to the clicked one.

A mask logit is the product of a token's embedding with a pixel's features. With random weights the
two are unrelated, and training must align them before it can learn anything else, which takes
longer than ten minutes on a hundred images. Here they start aligned: the token reads the memory at
the click and passes it on unchanged, and the pixel features are the memory, unchanged. The first
masks are then the pixels that resemble the clicked one in position and appearance, and training
refines them. Only the values of the parameters differ from another initialisation.

The sizes below were chosen by the one-click IoU of untrained models on training images of the
embedded sample; `_QUALITY_GAIN` by that of short runs on its held-out images.
"""

from collections.abc import Callable

import numpy as np
from flax import traverse_util

from semsam_jax.core.errors import ConfigError
from semsam_jax.models.presets import EfficientNetLiteConfig, ModelConfig

_POSITION_GAIN = 0.84
_LATERAL_GAIN = 0.57
_CROSS_GAIN = 0.68
_OFFSET_GAIN = 0.3
_SELF_GAIN = 0.45
_TOKEN_GAIN = 0.2
_ENCODER_ATTENTION_GAIN = 0.02
_ENCODER_FEEDFORWARD_GAIN = 0.37
_DECODER_FEEDFORWARD_GAIN = 0.05
_RANDOM_SHARE = 0.05
_FINEST_LEVEL_BIAS = 2.15
# Added before the ReLUs of the mask head and subtracted after them, so that normalised content
# passes unchanged.
_RELU_SHIFT = 2.5
_LOGIT_GAIN = 0.08
_LOGIT_THRESHOLD = 0.5
# Half the distance of the coarsest and the finest token on the constant channels.
_TOKEN_SPREAD = 0.8
_CONSTANT_GAIN = 4.0
# Their weight relative to other channels in the predicted IoU, since tokens differ in little else.
_QUALITY_GAIN = 10.0


def check_fits(config: ModelConfig) -> None:
    """Raises ConfigError for models that it does not fit."""
    backbone, pixels, decoder = config.backbone, config.pixel_decoder, config.decoder
    has_positions = (
        isinstance(backbone, EfficientNetLiteConfig)
        and 0 < backbone.position_channels <= pixels.dim
    )
    if not has_positions or not pixels.dim == pixels.mask_dim == decoder.dim:
        raise ConfigError(
            "model.init: 'similarity' is for a backbone with position channels (preset lite) and "
            "equal widths of pixel decoder, masks and decoder; use 'random'."
        )


def align(params: dict, config: ModelConfig, seed: int) -> dict:
    """Returns random parameters moved to the similarity initialization.

    Args:
        params: of all branches, NumPy float32; not modified.
        config: sizes that passed `check_fits`.
        seed: of the code that all levels share for the position.
    """
    flat = {
        key: np.array(value) for key, value in traverse_util.flatten_dict(params, sep="/").items()
    }
    _share_positions(flat, config, np.random.default_rng(seed))
    _pass_pixels_on(flat)
    _read_at_the_click(flat, config)
    _hand_on_to_masks(flat)
    _tell_tokens_apart(flat, config)
    return traverse_util.unflatten_dict(flat, sep="/")


def _share_positions(flat: dict, config: ModelConfig, rng: np.random.Generator) -> None:
    """One code of the position on every level, in the middle of the kernel."""
    channels, dim = config.backbone.position_channels, config.pixel_decoder.dim
    code = np.linalg.qr(rng.normal(size=(dim, channels)))[0].T.astype(np.float32)
    names = [f"input_proj{i}" for i in range(config.pixel_decoder.num_levels)] + ["adapter"]
    for name in names:
        kernel = flat[f"pixel_decoder/{name}/conv/kernel"]
        loudness = np.sqrt(np.square(kernel).sum() / kernel.shape[2])
        middle = kernel.shape[0] // 2
        kernel[..., -channels:, :] = 0
        kernel[middle, middle, -channels:] = _POSITION_GAIN * loudness * code
    flat["pixel_decoder/adapter/norm/scale"] *= _LATERAL_GAIN


def _pass_pixels_on(flat: dict) -> None:
    """Scales the pixel decoder's residual branches down, and makes its last convolutions the
    identity.
    """
    encoder = "pixel_decoder/encoder/layers"
    flat[f"{encoder}/self_attn/output_proj/kernel"] *= _ENCODER_ATTENTION_GAIN
    flat[f"{encoder}/linear2/kernel"] *= _ENCODER_FEEDFORWARD_GAIN
    _near_identity(flat, "pixel_decoder/fpn/conv/kernel", lambda kernel: kernel[1, 1])
    _near_identity(flat, "pixel_decoder/mask_features/kernel", lambda kernel: kernel[0, 0])


def _read_at_the_click(flat: dict, config: ModelConfig) -> None:
    """Makes the decoder's attention add the memory itself, mostly of the finest level."""
    layers, decoder = "decoder/layers", config.decoder
    for name in ("value_proj", "output_proj"):
        kernel = f"{layers}/cross_attn/{name}/kernel"
        _near_identity(flat, kernel, lambda kernel: kernel, _CROSS_GAIN**0.5)
    bias = flat[f"{layers}/cross_attn/attention_weights/bias"]
    num_levels = config.pixel_decoder.num_levels
    by_level = bias.reshape(decoder.num_layers, decoder.num_heads, num_levels, decoder.num_points)
    # The memory's last level is its finest.
    by_level[:, :, -1] += _FINEST_LEVEL_BIAS
    by_level[:, :, -2] += _FINEST_LEVEL_BIAS / 2
    flat[f"{layers}/cross_attn/sampling_offsets/bias"] *= _OFFSET_GAIN
    flat[f"{layers}/linear2/kernel"] *= _DECODER_FEEDFORWARD_GAIN
    flat[f"{layers}/self_attn/out_proj/kernel"] *= _SELF_GAIN
    for name in ("mask_tokens", "type_embed", "label_embed"):
        flat[f"prompt_encoder/{name}"] *= _TOKEN_GAIN


def _hand_on_to_masks(flat: dict) -> None:
    """Makes the mask head a scaled identity minus a threshold."""
    for i, gain in enumerate((1.0, 1.0, _LOGIT_GAIN)):
        kernel = f"decoder/mask_embed/layers_{i}/kernel"
        _near_identity(flat, kernel, lambda kernel: kernel, gain, gain)
    flat["decoder/mask_embed/layers_0/bias"] += _RELU_SHIFT
    flat["decoder/mask_embed/layers_2/bias"] -= _LOGIT_GAIN * (_RELU_SHIFT + _LOGIT_THRESHOLD)


def _tell_tokens_apart(flat: dict, config: ModelConfig) -> None:
    """Sets a few channels to 1 at every pixel, where a token's values are the bias of its mask."""
    num = config.pixel_decoder.dim // config.pixel_decoder.norm_groups
    flat["pixel_decoder/fpn/norm/scale"][:num] = 0
    flat["pixel_decoder/fpn/norm/bias"][:num] = 1
    for name in ("cross_attn/output_proj", "linear2", "self_attn/out_proj"):
        flat[f"decoder/layers/{name}/kernel"][..., :num] = 0
    for name in ("type_embed", "label_embed"):
        flat[f"prompt_encoder/{name}"][:, :num] = 0
    spread = np.linspace(_TOKEN_SPREAD, -_TOKEN_SPREAD, config.decoder.num_tokens)
    flat["prompt_encoder/mask_tokens"][:, :num] = spread[:, None]
    gain = _LOGIT_GAIN * _CONSTANT_GAIN
    flat["decoder/mask_embed/layers_2/kernel"][:num] *= _CONSTANT_GAIN
    flat["decoder/mask_embed/layers_2/bias"][:num] = -gain * _RELU_SHIFT
    flat["decoder/iou_head/layers_0/kernel"][:num] *= _QUALITY_GAIN


def _near_identity(
    flat: dict,
    name: str,
    square: Callable[[np.ndarray], np.ndarray],
    gain: float = 1.0,
    random_gain: float = 1.0,
) -> None:
    """Scales a random kernel down and adds the identity to the part that `square` selects."""
    kernel = flat[name]
    kernel *= _RANDOM_SHARE * random_gain
    part = square(kernel)
    part += gain * np.eye(part.shape[-1], dtype=part.dtype)
