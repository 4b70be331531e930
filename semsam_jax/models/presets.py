"""Sizes of the named models: frozen dataclasses and one dict.

`tiny` is the model behind the golden data; `lite` is the small real model for machines
without an accelerator; `swin_t` and `swin_l` are the paper's.
"""

import dataclasses
import json
import math
from collections.abc import Mapping

from semsam_jax.core.errors import ConfigError

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
MAX_LOGIT_SCALE = math.log(100)
"""Limit of the log scale of the class cosines, as in CLIP."""


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Swin transformer (arXiv 2103.14030)."""

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.3
    pretrain_image_size: int = 224

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels at strides 4, 8, 16, 32."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.depths)))


EFFICIENTNET_LITE_CHANNELS = {"lite0": (24, 40, 112, 320), "lite2": (24, 48, 120, 352)}
"""Channels of the four maps of each variant."""


@dataclasses.dataclass(frozen=True)
class EfficientNetLiteConfig:
    """EfficientNet-Lite with frozen batch statistics; strides 4..32 are taken out.

    A frozen convolutional backbone hardly encodes position, so `position_channels` fixed sinusoids
    of the position are appended to each map; 0 for none.
    """

    is_trained: bool = False  # False stops the gradient at the features
    position_channels: int = 32
    variant: str = "lite0"  # or "lite2": wider and deeper, ImageNet top-1 77.6 instead of 75.1

    def __post_init__(self):
        """Raises ConfigError for a variant that does not exist."""
        if self.variant not in EFFICIENTNET_LITE_CHANNELS:
            raise ConfigError(
                f"backbone.variant: unknown EfficientNet-Lite {self.variant!r}; use one of "
                f"{', '.join(EFFICIENTNET_LITE_CHANNELS)}."
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels at strides 4, 8, 16, 32."""
        return tuple(c + self.position_channels for c in EFFICIENTNET_LITE_CHANNELS[self.variant])


@dataclasses.dataclass(frozen=True)
class PixelDecoderConfig:
    """Deformable encoder over strides 8..64 and one FPN step to stride 4.

    `num_inputs` of the backbone's last maps enter the encoder, and `num_levels` leave it:
    as many, or one more (half the resolution of the last).
    """

    dim: int = 256
    mask_dim: int = 256
    num_layers: int = 6
    num_heads: int = 8
    num_points: int = 4
    feedforward_dim: int = 2048
    norm_groups: int = 32
    num_inputs: int = 3
    num_levels: int = 4


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Prompt and query decoder with its heads.

    Attributes:
        logit_scale: initial value of the learned log scale of the class cosines: log(1 / 0.07), as
            in CLIP. With the original's placeholder 1.0 all scores stay near 0.1.
        part_owner: adds the projection that predicts what a part belongs to; the released weights
            have none.
        mask_window: mask logits gain a quadratic around each token's predicted box
            (`models.mask_window`). Not in the paper.
        box_margin: the mask of a box prompt is empty outside the box times this factor, in training
            and inference (`Predictions.mask_limits`); 0 for no limit, as in the paper.
        pooled_names: class embeddings come from a token and from the backbone's maps at strides
            16 and 32, averaged under the token's mask (`models.mask_pooling`). Not in the paper.
        granularity_token: adds a token that answers a granularity between the finest part and the
            whole (`models.granularity_token`). Not in the paper.
    """

    dim: int = 256
    num_layers: int = 9
    num_heads: int = 8
    num_points: int = 4
    feedforward_dim: int = 2048
    num_tokens: int = 6
    text_dim: int = 512
    num_queries: int = 300
    num_denoising: int = 100
    noise_scale: float = 0.4
    point_noise_factor: float = 0.01
    logit_scale: float = 2.6593
    part_owner: bool = False
    mask_window: bool = False
    box_margin: float = 0.0
    pooled_names: bool = False
    granularity_token: bool = False


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """CLIP-like causal text tower (docs/reference.md, section 6)."""

    context_length: int = 18
    width: int = 512
    num_heads: int = 8
    num_layers: int = 12
    vocab_size: int = 49408


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole model.

    `has_generic` adds the two-stage query branch and denoising. With `guided_upsampling` masks of
    clicks follow the image's edges when they are brought to its size (`inference.guided`).
    `learned_names` is the number of names whose embedding is a parameter (`models.learned_names`).
    """

    backbone: SwinConfig | EfficientNetLiteConfig
    pixel_decoder: PixelDecoderConfig = PixelDecoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    text: TextConfig | None = None
    has_generic: bool = True
    guided_upsampling: bool = False
    learned_names: int = 0
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN
    pixel_std: tuple[float, ...] = IMAGENET_STD

    @property
    def pooled_dim(self) -> int:
        """Channels that are averaged under masks for names, 0 without `decoder.pooled_names`."""
        return sum(self.backbone.channels[-2:]) if self.decoder.pooled_names else 0


PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        backbone=SwinConfig(embed_dim=24, depths=(2, 2, 2, 2), num_heads=(2, 2, 4, 8)),
        pixel_decoder=PixelDecoderConfig(dim=64, mask_dim=32, num_layers=2, feedforward_dim=96),
        decoder=DecoderConfig(
            dim=64,
            num_layers=3,
            feedforward_dim=96,
            text_dim=48,
            num_queries=20,
            num_denoising=10,
        ),
        text=TextConfig(width=32, num_heads=4, num_layers=2),
    ),
    "lite": ModelConfig(
        backbone=EfficientNetLiteConfig(variant="lite2"),
        pixel_decoder=PixelDecoderConfig(dim=128, mask_dim=128, num_layers=3, feedforward_dim=512),
        decoder=DecoderConfig(
            dim=128,
            num_layers=4,
            feedforward_dim=512,
            text_dim=1024,
            num_queries=100,
            num_denoising=40,
            mask_window=True,
            box_margin=1.05,
            pooled_names=True,
        ),
        guided_upsampling=True,
        pixel_mean=(127.0, 127.0, 127.0),
        pixel_std=(128.0, 128.0, 128.0),
    ),
    "swin_t": ModelConfig(backbone=SwinConfig(), text=TextConfig()),
    "swin_l": ModelConfig(
        backbone=SwinConfig(
            embed_dim=192,
            depths=(2, 2, 18, 2),
            num_heads=(6, 12, 24, 48),
            window_size=12,
            pretrain_image_size=384,
        ),
        text=TextConfig(),
    ),
}


def model_config(preset: str) -> ModelConfig:
    """Returns the sizes of a named preset; ConfigError lists the names otherwise."""
    if preset not in PRESETS:
        raise ConfigError(
            f"model.preset: unknown preset {preset!r}; use one of {', '.join(sorted(PRESETS))}."
        )
    return PRESETS[preset]


def to_json(config: ModelConfig) -> str:
    """Serialises a configuration; `from_json` gives the equal object back."""
    tree = dataclasses.asdict(config)
    tree["backbone"]["kind"] = _KINDS_BY_TYPE[type(config.backbone)]
    return json.dumps(tree)


def from_json(text: str | Mapping) -> ModelConfig:
    """Inverse of `to_json`; takes the text or the parsed mapping."""
    tree = dict(json.loads(text) if isinstance(text, str) else text)
    backbone = dict(tree.pop("backbone"))
    kind = _KINDS[backbone.pop("kind")]
    text_tree = tree.pop("text")
    return ModelConfig(
        backbone=kind(**_tuples(backbone)),
        pixel_decoder=PixelDecoderConfig(**tree.pop("pixel_decoder")),
        decoder=DecoderConfig(**tree.pop("decoder")),
        text=None if text_tree is None else TextConfig(**text_tree),
        **_tuples(tree),
    )


# Older names of a kind come first; the last one is written.
_KINDS = {
    "swin": SwinConfig,
    "efficientnet_lite0": EfficientNetLiteConfig,
    "efficientnet_lite": EfficientNetLiteConfig,
}
_KINDS_BY_TYPE = {kind: name for name, kind in _KINDS.items()}


def _tuples(tree: Mapping) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}
