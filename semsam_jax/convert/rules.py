"""The table of names: which tensor of the original is which parameter here.

Every line of the `_..._rows` functions is one group of original parameters: name, path in the
parameter tree, layout and shape. Equal layers of the original are stacked on a new leading axis.
Names are written without the prefix `model.` (docs/reference.md, section 16).
"""

import re
from collections.abc import Sequence

from semsam_jax.convert.rows import (
    Rule,
    TensorLayout,
    TensorRow,
    conv,
    dense,
    mlp_rows,
    norm,
    pointwise,
    single,
    stacked,
    tensor,
)
from semsam_jax.core.errors import ConversionError
from semsam_jax.models.presets import (
    DecoderConfig,
    ModelConfig,
    PixelDecoderConfig,
    SwinConfig,
    TextConfig,
)

_TOWERS = ("backbone", "pixel_decoder", "text_encoder")
_DECODER_PARTS = ("prompt_encoder", "memory_projection", "decoder", "query_selector", "denoising")
PARTS = (*_TOWERS, *_DECODER_PARTS)
# docs/reference.md, section 6; released files have no text tower and no scale.
INITIAL_LOGIT_SCALE = 1.0

# Names that a file may carry and the model does not need, with the reason.
IGNORED = (
    (
        r"backbone\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index",
        "follows from the window size",
    ),
    (r"criterion\..*", "belongs to the training loss"),
    (r"pixel_(mean|std)", "constant of the configuration"),
    (r"n_averaged|initted|step|num_updates|decay", "counts averaged weights"),
)

_PIXEL_DECODER = "sem_seg_head.pixel_decoder"
_PREDICTOR = "sem_seg_head.predictor"
_LANG = f"{_PREDICTOR}.lang_encoder"


def ignored_reason(key: str) -> str | None:
    """Why an original name is not needed, or None if it is not known as such."""
    return next((why for pattern, why in IGNORED if re.fullmatch(pattern, key)), None)


def rules_for(config: ModelConfig) -> tuple[Rule, ...]:
    """All rules of a model, in the order of the parameter tree.

    Raises:
        ConversionError: the backbone has no counterpart in the original.
    """
    if not isinstance(config.backbone, SwinConfig):
        raise ConversionError(
            f"model_config.backbone: {type(config.backbone).__name__} has no counterpart in the "
            f"original; expected SwinConfig. Only Swin models can be converted."
        )
    return (*backbone_rules(config.backbone, prefix="backbone."), *rules_without_backbone(config))


def rules_without_backbone(config: ModelConfig) -> tuple[Rule, ...]:
    """The rules of everything but the backbone, for a backbone of any kind."""
    rules = _pixel_decoder_rules(config.pixel_decoder, config.backbone.channels)
    rules += _prompt_rules(config.decoder)
    rules += _memory_rules(config)
    rules += _decoder_rules(config)
    if config.has_generic:
        rules += single(_selector_rows(config.decoder), _PREDICTOR, "query_selector")
    # Files of the interactive model carry this unused tensor; kept for the way back.
    dim, text_dim = config.decoder.dim, config.decoder.text_dim
    rules.append(
        Rule(
            "denoising/lang_mapper",
            (f"{_PREDICTOR}.lang_mapper",),
            TensorLayout.SAME,
            (text_dim, dim),
            is_required=config.has_generic,
        )
    )
    if config.text is not None:
        rules += text_rules(config.text, config.decoder.text_dim, prefix=f"{_LANG}.")
    return tuple(rules)


def backbone_rules(config: SwinConfig, prefix: str, *, has_out_norms: bool = True) -> list[Rule]:
    """Rules of a Swin backbone whose original names start with `prefix`."""
    dim = config.embed_dim
    stem = [*conv("proj", "proj", 3, dim, 4), *norm("norm", "norm", dim)]
    rules = single(stem, f"{prefix}patch_embed", "backbone/patch_embed")
    for stage, (depth, channels) in enumerate(zip(config.depths, config.channels, strict=True)):
        layer = f"{prefix}layers.{stage}"
        rows = _swin_block_rows(config, channels, config.num_heads[stage])
        for offset, kind in enumerate(("regular", "shifted") if depth > 1 else ()):
            blocks = [f"{layer}.blocks.{block}" for block in range(offset, depth // 2 * 2, 2)]
            rules += stacked(rows, blocks, f"backbone/stage{stage}/pairs/{kind}")
        if depth % 2:
            last = f"{layer}.blocks.{depth - 1}"
            rules += single(rows, last, f"backbone/stage{stage}/last")
        if stage + 1 < len(config.depths):
            down = [
                *dense("reduction", "reduction", 4 * channels, 2 * channels, bias=False),
                *norm("norm", "norm", 4 * channels),
            ]
            rules += single(down, f"{layer}.downsample", f"backbone/stage{stage}/downsample")
        if has_out_norms:
            out_norm = norm(f"norm{stage}", f"out_norm{stage}", channels)
            rules += single(out_norm, prefix.removesuffix("."), "backbone")
    return rules


def text_rules(config: TextConfig, text_dim: int, prefix: str) -> list[Rule]:
    """Rules of a text tower whose original names start with `prefix`."""
    width = config.width
    tower = f"{prefix}lang_encoder"
    top = [*tensor("lang_proj", "lang_proj", width, text_dim)]
    rows = [
        *tensor("token_embedding.weight", "token_embedding", config.vocab_size, width),
        *tensor("positional_embedding", "positional_embedding", config.context_length, width),
        *norm("ln_final", "ln_final", width),
    ]
    layers = [f"{tower}.resblocks.{layer}" for layer in range(config.num_layers)]
    return [
        *single(rows, tower, "text_encoder"),
        *stacked(_text_layer_rows(width), layers, "text_encoder/layers"),
        *single(top, prefix.removesuffix("."), "text_encoder"),
    ]


def _swin_block_rows(config: SwinConfig, dim: int, num_heads: int) -> list[TensorRow]:
    hidden = int(dim * config.mlp_ratio)
    num_offsets = (2 * config.window_size - 1) ** 2
    table = "relative_position_bias_table"
    return [
        *norm("norm1", "norm1", dim),
        *tensor(f"attn.{table}", f"attn/{table}", num_offsets, num_heads),
        *dense("attn.qkv", "attn/qkv", dim, 3 * dim),
        *dense("attn.proj", "attn/proj", dim, dim),
        *norm("norm2", "norm2", dim),
        *dense("mlp.fc1", "mlp/fc1", dim, hidden),
        *dense("mlp.fc2", "mlp/fc2", hidden, dim),
    ]


def _pixel_decoder_rules(config: PixelDecoderConfig, channels: Sequence[int]) -> list[Rule]:
    dim = config.dim
    inputs = [(n, 1) for n in channels[-config.num_inputs :]]
    inputs += [(channels[-1], 3)] * (config.num_levels - config.num_inputs)
    rows = [
        row
        for level, (n_in, size) in enumerate(inputs)
        for row in (
            *conv(f"input_proj.{level}.0", f"input_proj{level}/conv", n_in, dim, size),
            *norm(f"input_proj.{level}.1", f"input_proj{level}/norm", dim),
        )
    ]
    rows += [
        *tensor("transformer.level_embed", "level_embed", config.num_levels, dim),
        *conv("adapter_1", "adapter/conv", channels[0], dim, 1, bias=False),
        *norm("adapter_1.norm", "adapter/norm", dim),
        *conv("layer_1", "fpn/conv", dim, dim, 3, bias=False),
        *norm("layer_1.norm", "fpn/norm", dim),
        *conv("mask_features", "mask_features", dim, config.mask_dim, 1),
    ]
    layer_rows = [
        *_deform_rows("self_attn", dim, config.num_heads, config.num_levels, config.num_points),
        *norm("norm1", "norm1", dim),
        *dense("linear1", "linear1", dim, config.feedforward_dim),
        *dense("linear2", "linear2", config.feedforward_dim, dim),
        *norm("norm2", "norm2", dim),
    ]
    layers = [
        f"{_PIXEL_DECODER}.transformer.encoder.layers.{layer}" for layer in range(config.num_layers)
    ]
    return [
        *single(rows, _PIXEL_DECODER, "pixel_decoder"),
        *stacked(layer_rows, layers, "pixel_decoder/encoder/layers"),
    ]


def _prompt_rules(config: DecoderConfig) -> list[Rule]:
    rows = [
        *tensor("label_enc.weight", "label_embed", 2, config.dim),
        *tensor("pb_embedding.weight", "type_embed", 2, config.dim),
        *tensor("mask_tokens.weight", "mask_tokens", config.num_tokens, config.dim),
    ]
    return single(rows, _PREDICTOR, "prompt_encoder")


def _memory_rules(config: ModelConfig) -> list[Rule]:
    n_in, n_out = config.pixel_decoder.dim, config.decoder.dim
    if n_in == n_out:
        return []
    rows = []
    for level in range(config.pixel_decoder.num_levels):
        rows += pointwise(f"input_proj.{level}", f"level{level}", n_in, n_out)
    return single(rows, _PREDICTOR, "memory_projection")


def _decoder_rules(model: ModelConfig) -> list[Rule]:
    config, num_levels = model.decoder, model.pixel_decoder.num_levels
    dim = config.dim
    layer_rows = [
        *dense("self_attn.in_proj", "self_attn/in_proj", dim, 3 * dim, joint="_"),
        *dense("self_attn.out_proj", "self_attn/out_proj", dim, dim),
        *_deform_rows("cross_attn", dim, config.num_heads, num_levels, config.num_points),
        *norm("norm1", "norm1", dim),
        *norm("norm2", "norm2", dim),
        *norm("norm3", "norm3", dim),
        *dense("linear1", "linear1", dim, config.feedforward_dim),
        *dense("linear2", "linear2", config.feedforward_dim, dim),
    ]
    layers = [f"{_PREDICTOR}.decoder.layers.{layer}" for layer in range(config.num_layers)]
    head_rows = [
        *mlp_rows("decoder.ref_point_head", "ref_point_head", (2 * dim, dim, dim)),
        *mlp_rows("mask_embed", "mask_embed", (dim, dim, dim, model.pixel_decoder.mask_dim)),
        *mlp_rows("iou_prediction_head", "iou_head", (dim, dim, dim, 1)),
        *(dense("mask_window", "mask_window", dim, 6) if config.mask_window else ()),
        *tensor("class_embed", "object_embed", dim, config.text_dim),
        *tensor("class_embed_part", "part_embed", dim, config.text_dim),
    ]
    if config.part_owner:  # Not in the original.
        head_rows += tensor("class_embed_owner", "owner_embed", dim, config.text_dim)
    if config.pooled_names:
        kinds = ("object", "part", "owner") if config.part_owner else ("object", "part")
        for kind in kinds:
            name = f"{kind}_pooled_embed"
            head_rows += tensor(f"class_{name}", name, model.pooled_dim, config.text_dim)
    # The original shares one norm and one box head and saves them under every name.
    shared_norm = [f"{_PREDICTOR}.decoder.norm"]
    shared_boxes = [f"{_PREDICTOR}._bbox_embed"]
    for layer in range(config.num_layers):
        shared_boxes.append(f"{_PREDICTOR}.bbox_embed.{layer}")
    for layer in range(1, config.num_layers):
        shared_boxes.append(f"{_PREDICTOR}.decoder.bbox_embed.{layer}")
    box_rows = mlp_rows("", "", (dim, dim, dim, 4))
    return [
        *stacked(layer_rows, layers, "decoder/layers"),
        *single(norm("", "", dim), f"{_PREDICTOR}.decoder_norm", "decoder/norm", shared_norm),
        *single(box_rows, f"{_PREDICTOR}.decoder.bbox_embed.0", "decoder/bbox_embed", shared_boxes),
        *single(head_rows, _PREDICTOR, "decoder"),
        Rule(
            "decoder/logit_scale",
            (f"{_LANG}.logit_scale",),
            TensorLayout.SAME,
            (),
            is_required=model.text is not None,
            initial=INITIAL_LOGIT_SCALE,
        ),
    ]


def _selector_rows(config: DecoderConfig) -> list[TensorRow]:
    return [
        *dense("enc_output", "enc_output", config.dim, config.dim),
        *norm("enc_output_norm", "norm", config.dim),
    ]


def _text_layer_rows(width: int) -> list[TensorRow]:
    return [
        *dense("attn.in_proj", "attn/in_proj", width, 3 * width, joint="_"),
        *dense("attn.out_proj", "attn/out_proj", width, width),
        *norm("ln_1", "ln_1", width),
        *norm("ln_2", "ln_2", width),
        *dense("mlp.c_fc", "mlp/c_fc", width, 4 * width),
        *dense("mlp.c_proj", "mlp/c_proj", 4 * width, width),
    ]


def _deform_rows(
    name: str, dim: int, num_heads: int, num_levels: int, num_points: int
) -> list[TensorRow]:
    samples = num_heads * num_levels * num_points
    return [
        *dense(f"{name}.sampling_offsets", f"{name}/sampling_offsets", dim, 2 * samples),
        *dense(f"{name}.attention_weights", f"{name}/attention_weights", dim, samples),
        *dense(f"{name}.value_proj", f"{name}/value_proj", dim, dim),
        *dense(f"{name}.output_proj", f"{name}/output_proj", dim, dim),
    ]
