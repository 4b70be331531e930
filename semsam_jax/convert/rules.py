"""The one table of reference names: which tensor of the original is which parameter of ours.

Every line of the `_..._rows` functions is one family of reference parameters: its name,
its path in our tree, its layout and its shape. Equal layers of the reference are stacked
on a new leading axis. Names are written without the prefix `model.` (SPEC section 0).
"""

import enum
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from semsam_jax.core.errors import ConversionError
from semsam_jax.models.presets import (
    DecoderConfig,
    ModelConfig,
    PixelDecoderConfig,
    SwinConfig,
    TextConfig,
)

NUM_LEVELS = 4
_TOWERS = ("backbone", "pixel_decoder", "text_encoder")
PARTS = (*_TOWERS, "prompt_encoder", "decoder", "query_selector", "denoising")
INITIAL_LOGIT_SCALE = 1.0  # SPEC section v; released files have no text tower and no scale

# Names that a file may carry and the model does not need, with the reason.
IGNORED = (
    (
        r"backbone\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index",
        "follows from the window size",
    ),
    (r"criterion\..*", "belongs to the training loss"),
    (r"pixel_(mean|std)", "constant of the configuration"),
)

_PIXEL_DECODER = "sem_seg_head.pixel_decoder"
_PREDICTOR = "sem_seg_head.predictor"
_LANG = f"{_PREDICTOR}.lang_encoder"


class Layout(enum.Enum):
    """How a reference tensor becomes our array; the way back is its inverse."""

    SAME = "same"
    DENSE = "[out, in] -> [in, out]"
    CONV = "[out, in, kh, kw] -> [kh, kw, in, out]"

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Reorders a reference tensor into flax's layout (a view)."""
        if self is Layout.DENSE:
            return array.T
        return array.transpose(2, 3, 1, 0) if self is Layout.CONV else array

    def to_reference(self, array: np.ndarray) -> np.ndarray:
        """Reorders our array into PyTorch's layout (a view)."""
        if self is Layout.DENSE:
            return array.T
        return array.transpose(3, 2, 0, 1) if self is Layout.CONV else array


@dataclass(frozen=True)
class Rule:
    """One leaf of our tree and the reference tensors that make it up.

    Attributes:
        path: place in our tree, parts joined by "/".
        keys: reference names; they are stacked in this order if `is_stacked`.
        layout: reordering of each tensor's axes.
        shape: shape of each reference tensor.
        is_stacked: whether our leaf has a leading axis over `keys`.
        aliases: for each key, the other names under which files repeat the same tensor.
        is_required: whether the model lacks something without it.
        initial: value of a scalar that files may lack.
    """

    path: str
    keys: tuple[str, ...]
    layout: Layout
    shape: tuple[int, ...]
    is_stacked: bool = False
    aliases: tuple[tuple[str, ...], ...] = ()
    is_required: bool = True
    initial: float | None = None

    @property
    def part(self) -> str:
        """First component of the path, one of `PARTS`."""
        return self.path.split("/", 1)[0]

    @property
    def our_shape(self) -> tuple[int, ...]:
        """Shape of our leaf."""
        one = self.layout.to_ours(np.broadcast_to(np.float32(0), self.shape)).shape
        return (len(self.keys), *one) if self.is_stacked else one


@dataclass(frozen=True)
class _Row:
    """One reference parameter inside a module; names are relative to the module."""

    key: str
    path: str
    layout: Layout
    shape: tuple[int, ...]


def ignored_reason(key: str) -> str | None:
    """Why a reference name is not needed, or None if it is not known as such."""
    return next((why for pattern, why in IGNORED if re.fullmatch(pattern, key)), None)


def rules_for(config: ModelConfig) -> tuple[Rule, ...]:
    """All rules of a model, in the order of our tree.

    Raises:
        ConversionError: the backbone has no counterpart in the reference.
    """
    if not isinstance(config.backbone, SwinConfig):
        raise ConversionError(
            f"model_config.backbone: {type(config.backbone).__name__} has no counterpart in the "
            f"original; wanted SwinConfig. Only Swin models can be converted."
        )
    rules = [*backbone_rules(config.backbone, prefix="backbone.")]
    rules += _pixel_decoder_rules(config.pixel_decoder, config.backbone.channels)
    rules += _prompt_rules(config.decoder)
    rules += _decoder_rules(config)
    if config.has_generic:
        rules += _single(_selector_rows(config.decoder), _PREDICTOR, "query_selector")
    # Files of the interactive model carry this unused tensor; kept for the way back.
    dim, text_dim = config.decoder.dim, config.decoder.text_dim
    rules.append(
        Rule(
            "denoising/lang_mapper",
            (f"{_PREDICTOR}.lang_mapper",),
            Layout.SAME,
            (text_dim, dim),
            is_required=config.has_generic,
        )
    )
    if config.text is not None:
        rules += text_rules(config.text, config.decoder.text_dim, prefix=f"{_LANG}.")
    return tuple(rules)


def backbone_rules(config: SwinConfig, prefix: str, *, has_out_norms: bool = True) -> list[Rule]:
    """Rules of a Swin backbone whose reference names start with `prefix`."""
    if any(depth % 2 for depth in config.depths):
        raise ConversionError(
            f"model_config.backbone.depths: got {config.depths}, wanted even numbers (blocks run "
            f"in pairs of one regular and one shifted)."
        )
    dim = config.embed_dim
    stem = [*_conv("proj", "proj", 3, dim, 4), *_norm("norm", "norm", dim)]
    rules = _single(stem, f"{prefix}patch_embed", "backbone/patch_embed")
    for stage, (depth, channels) in enumerate(zip(config.depths, config.channels, strict=True)):
        layer = f"{prefix}layers.{stage}"
        rows = _swin_block_rows(config, channels, config.num_heads[stage])
        for offset, kind in enumerate(("regular", "shifted")):
            blocks = [f"{layer}.blocks.{block}" for block in range(offset, depth, 2)]
            rules += _stacked(rows, blocks, f"backbone/stage{stage}/pairs/{kind}")
        if stage + 1 < len(config.depths):
            down = [
                *_dense("reduction", "reduction", 4 * channels, 2 * channels, bias=False),
                *_norm("norm", "norm", 4 * channels),
            ]
            rules += _single(down, f"{layer}.downsample", f"backbone/stage{stage}/downsample")
        if has_out_norms:
            norm = _norm(f"norm{stage}", f"out_norm{stage}", channels)
            rules += _single(norm, prefix.removesuffix("."), "backbone")
    return rules


def text_rules(config: TextConfig, text_dim: int, prefix: str) -> list[Rule]:
    """Rules of a text tower whose reference names start with `prefix`."""
    width = config.width
    tower = f"{prefix}lang_encoder"
    top = [*_tensor("lang_proj", "lang_proj", width, text_dim)]
    rows = [
        *_tensor("token_embedding.weight", "token_embedding", config.vocab_size, width),
        *_tensor("positional_embedding", "positional_embedding", config.context_length, width),
        *_norm("ln_final", "ln_final", width),
    ]
    layers = [f"{tower}.resblocks.{layer}" for layer in range(config.num_layers)]
    return [
        *_single(rows, tower, "text_encoder"),
        *_stacked(_text_layer_rows(width), layers, "text_encoder/layers"),
        *_single(top, prefix.removesuffix("."), "text_encoder"),
    ]


def _swin_block_rows(config: SwinConfig, dim: int, num_heads: int) -> list[_Row]:
    hidden = int(dim * config.mlp_ratio)
    num_offsets = (2 * config.window_size - 1) ** 2
    table = "relative_position_bias_table"
    return [
        *_norm("norm1", "norm1", dim),
        *_tensor(f"attn.{table}", f"attn/{table}", num_offsets, num_heads),
        *_dense("attn.qkv", "attn/qkv", dim, 3 * dim),
        *_dense("attn.proj", "attn/proj", dim, dim),
        *_norm("norm2", "norm2", dim),
        *_dense("mlp.fc1", "mlp/fc1", dim, hidden),
        *_dense("mlp.fc2", "mlp/fc2", hidden, dim),
    ]


def _pixel_decoder_rules(config: PixelDecoderConfig, channels: Sequence[int]) -> list[Rule]:
    dim = config.dim
    rows = [
        row
        for level, (n_in, size) in enumerate([(n, 1) for n in channels[1:]] + [(channels[-1], 3)])
        for row in (
            *_conv(f"input_proj.{level}.0", f"input_proj{level}/conv", n_in, dim, size),
            *_norm(f"input_proj.{level}.1", f"input_proj{level}/norm", dim),
        )
    ]
    rows += [
        *_tensor("transformer.level_embed", "level_embed", NUM_LEVELS, dim),
        *_conv("adapter_1", "adapter/conv", channels[0], dim, 1, bias=False),
        *_norm("adapter_1.norm", "adapter/norm", dim),
        *_conv("layer_1", "fpn/conv", dim, dim, 3, bias=False),
        *_norm("layer_1.norm", "fpn/norm", dim),
        *_conv("mask_features", "mask_features", dim, config.mask_dim, 1),
    ]
    layer_rows = [
        *_deform_rows("self_attn", dim, config.num_heads, config.num_points),
        *_norm("norm1", "norm1", dim),
        *_dense("linear1", "linear1", dim, config.feedforward_dim),
        *_dense("linear2", "linear2", config.feedforward_dim, dim),
        *_norm("norm2", "norm2", dim),
    ]
    layers = [
        f"{_PIXEL_DECODER}.transformer.encoder.layers.{layer}" for layer in range(config.num_layers)
    ]
    return [
        *_single(rows, _PIXEL_DECODER, "pixel_decoder"),
        *_stacked(layer_rows, layers, "pixel_decoder/encoder/layers"),
    ]


def _prompt_rules(config: DecoderConfig) -> list[Rule]:
    rows = [
        *_tensor("label_enc.weight", "label_embed", 2, config.dim),
        *_tensor("pb_embedding.weight", "type_embed", 2, config.dim),
        *_tensor("mask_tokens.weight", "mask_tokens", config.num_tokens, config.dim),
    ]
    return _single(rows, _PREDICTOR, "prompt_encoder")


def _decoder_rules(model: ModelConfig) -> list[Rule]:
    config = model.decoder
    dim = config.dim
    layer_rows = [
        *_dense("self_attn.in_proj", "self_attn/in_proj", dim, 3 * dim, joint="_"),
        *_dense("self_attn.out_proj", "self_attn/out_proj", dim, dim),
        *_deform_rows("cross_attn", dim, config.num_heads, config.num_points),
        *_norm("norm1", "norm1", dim),
        *_norm("norm2", "norm2", dim),
        *_norm("norm3", "norm3", dim),
        *_dense("linear1", "linear1", dim, config.feedforward_dim),
        *_dense("linear2", "linear2", config.feedforward_dim, dim),
    ]
    layers = [f"{_PREDICTOR}.decoder.layers.{layer}" for layer in range(config.num_layers)]
    head_rows = [
        *_mlp_rows("decoder.ref_point_head", "ref_point_head", (2 * dim, dim, dim)),
        *_mlp_rows("mask_embed", "mask_embed", (dim, dim, dim, model.pixel_decoder.mask_dim)),
        *_mlp_rows("iou_prediction_head", "iou_head", (dim, dim, dim, 1)),
        *_tensor("class_embed", "object_embed", dim, config.text_dim),
        *_tensor("class_embed_part", "part_embed", dim, config.text_dim),
    ]
    # The reference shares one norm and one box head and saves them under every name.
    shared_norm = [f"{_PREDICTOR}.decoder.norm"]
    shared_boxes = [f"{_PREDICTOR}._bbox_embed"]
    for layer in range(config.num_layers):
        shared_boxes.append(f"{_PREDICTOR}.bbox_embed.{layer}")
    for layer in range(1, config.num_layers):
        shared_boxes.append(f"{_PREDICTOR}.decoder.bbox_embed.{layer}")
    box_rows = _mlp_rows("", "", (dim, dim, dim, 4))
    return [
        *_stacked(layer_rows, layers, "decoder/layers"),
        *_single(_norm("", "", dim), f"{_PREDICTOR}.decoder_norm", "decoder/norm", shared_norm),
        *_single(
            box_rows, f"{_PREDICTOR}.decoder.bbox_embed.0", "decoder/bbox_embed", shared_boxes
        ),
        *_single(head_rows, _PREDICTOR, "decoder"),
        Rule(
            "decoder/logit_scale",
            (f"{_LANG}.logit_scale",),
            Layout.SAME,
            (),
            is_required=model.text is not None,
            initial=INITIAL_LOGIT_SCALE,
        ),
    ]


def _selector_rows(config: DecoderConfig) -> list[_Row]:
    return [
        *_dense("enc_output", "enc_output", config.dim, config.dim),
        *_norm("enc_output_norm", "norm", config.dim),
    ]


def _text_layer_rows(width: int) -> list[_Row]:
    return [
        *_dense("attn.in_proj", "attn/in_proj", width, 3 * width, joint="_"),
        *_dense("attn.out_proj", "attn/out_proj", width, width),
        *_norm("ln_1", "ln_1", width),
        *_norm("ln_2", "ln_2", width),
        *_dense("mlp.c_fc", "mlp/c_fc", width, 4 * width),
        *_dense("mlp.c_proj", "mlp/c_proj", 4 * width, width),
    ]


def _deform_rows(name: str, dim: int, num_heads: int, num_points: int) -> list[_Row]:
    samples = num_heads * NUM_LEVELS * num_points
    return [
        *_dense(f"{name}.sampling_offsets", f"{name}/sampling_offsets", dim, 2 * samples),
        *_dense(f"{name}.attention_weights", f"{name}/attention_weights", dim, samples),
        *_dense(f"{name}.value_proj", f"{name}/value_proj", dim, dim),
        *_dense(f"{name}.output_proj", f"{name}/output_proj", dim, dim),
    ]


def _mlp_rows(key: str, path: str, sizes: Sequence[int]) -> list[_Row]:
    rows: list[_Row] = []
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        name, place = _join(".", key, f"layers.{layer}"), _join("/", path, f"layers_{layer}")
        rows += _dense(name, place, n_in, n_out)
    return rows


def _dense(
    key: str, path: str, n_in: int, n_out: int, *, bias: bool = True, joint: str = "."
) -> list[_Row]:
    rows = [_Row(f"{key}{joint}weight", f"{path}/kernel", Layout.DENSE, (n_out, n_in))]
    if bias:
        rows.append(_Row(f"{key}{joint}bias", f"{path}/bias", Layout.SAME, (n_out,)))
    return rows


def _conv(
    key: str, path: str, n_in: int, n_out: int, size: int, *, bias: bool = True
) -> list[_Row]:
    rows = [_Row(f"{key}.weight", f"{path}/kernel", Layout.CONV, (n_out, n_in, size, size))]
    if bias:
        rows.append(_Row(f"{key}.bias", f"{path}/bias", Layout.SAME, (n_out,)))
    return rows


def _norm(key: str, path: str, dim: int) -> list[_Row]:
    return [
        _Row(_join(".", key, "weight"), _join("/", path, "scale"), Layout.SAME, (dim,)),
        _Row(_join(".", key, "bias"), _join("/", path, "bias"), Layout.SAME, (dim,)),
    ]


def _tensor(key: str, path: str, *shape: int) -> list[_Row]:
    return [_Row(key, path, Layout.SAME, shape)]


def _single(
    rows: Iterable[_Row], prefix: str, place: str, other_prefixes: Sequence[str] = ()
) -> list[Rule]:
    return [
        Rule(
            f"{place}/{row.path}",
            (_join(".", prefix, row.key),),
            row.layout,
            row.shape,
            aliases=(tuple(f"{other}.{row.key}" for other in other_prefixes),),
        )
        for row in rows
    ]


def _stacked(rows: Iterable[_Row], prefixes: Sequence[str], place: str) -> list[Rule]:
    return [
        Rule(
            f"{place}/{row.path}",
            tuple(f"{prefix}.{row.key}" for prefix in prefixes),
            row.layout,
            row.shape,
            is_stacked=True,
        )
        for row in rows
    ]


def _join(joint: str, *names: str) -> str:
    return joint.join(name for name in names if name)
