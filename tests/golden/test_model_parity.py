"""Decoder, heads and generic branch, image to answer, against the recorded reference.

Every test also checks that it compares all arrays recorded under its prefix.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.convert.from_torch import from_torch
from semsam_jax.convert.names import unwrap
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.core.structs import Prompts, Pyramid, TextTable
from semsam_jax.models.decoder import make_memory
from semsam_jax.models.denoising import DenoisingTargets, attention_mask
from semsam_jax.models.heads import mask_logits
from semsam_jax.models.presets import model_config
from semsam_jax.models.semantic_sam import SemanticSAM
from tests.golden import table
from tests.golden.table import DATA, compare, golden
from tests.ops.resize import resize_bilinear

FILES = ("tiny_image_a", "tiny_image_b")
INTERACTIVE = SemanticSAM(dataclasses.replace(model_config("tiny"), has_generic=False))
GENERIC = SemanticSAM(model_config("tiny"))
NAMES = {"objects": "text_whole", "parts": "text_part"}


def _state(name):
    return unwrap(read_state_dict(DATA / name))


@functools.cache
def _params():
    return jax.tree.map(jnp.asarray, from_torch(_state("tiny_ref.pth"), INTERACTIVE.config).params)


@functools.cache
def _generic_params():
    state = _state("tiny_ref.pth") | _state("tiny_generic_ref.pth")
    return jax.tree.map(jnp.asarray, from_torch(state, GENERIC.config).params)


@functools.cache
def _encoded(file):
    """Pyramid, pixels and valid size of the recorded image, from our own encoder."""
    pixels = golden("tiny_inputs")[file.removeprefix("tiny_")]
    h, w = pixels.shape[:2]
    image = np.zeros((1, 128, 160, 3), np.uint8)
    image[0, :h, :w] = pixels
    encode = jax.jit(
        lambda p, *args: INTERACTIVE.apply(
            {"params": p}, *args, method="encode_image", mutable="intermediates"
        )
    )
    pyramid, sown = encode(_params(), image, jnp.array([[h, w]], jnp.int32))
    return pyramid, sown["intermediates"]["pixels"][0], (h, w)


@functools.partial(jax.jit, static_argnames="isolate")
def _decode(params, pyramid, prompts, text, isolate, noise=None, is_box=None):
    def run(model):
        out = model.decode_prompts(
            pyramid,
            prompts,
            text,
            all_layers=True,
            isolate=isolate,
            noise=noise,
            is_box=is_box,
        )
        tokens = model.prompt_encoder(prompts, noise=noise, is_box=is_box)
        return out, tokens, mask_logits(out.mask_embed[:, 0], pyramid.mask_features.repeat(3, 0))

    return INTERACTIVE.apply({"params": params}, method=run, mutable="intermediates")


def _prompts(boxes, type_index=0):
    n = len(boxes)
    kinds = np.broadcast_to(np.asarray(type_index, np.int32), (n,))
    return Prompts(
        boxes=jnp.asarray(boxes)[None],
        type_index=jnp.asarray(kinds)[None],
        valid=jnp.ones((1, n), bool),
    )


def _run(file, boxes, type_index=0, text=None, isolate=False, **noise):
    return _decode(
        _params(), _encoded(file)[0], _prompts(boxes, type_index), text, isolate, **noise
    )


def _compare_all(file, prefix, got, inputs=()):
    """Compares `{key: (array, tolerance)}`; nothing recorded may be left out."""
    recorded = {k.removeprefix(prefix) for k in golden(file) if k.startswith(prefix)}
    assert recorded - set(inputs) <= set(got), recorded - set(got)
    for key in sorted(recorded - set(inputs)):
        compare(file, prefix + key, *got[key])


def _predictions(out, masks):
    """Names of the reference for the predictions of all three layers."""
    got = {}
    for i, name in enumerate(("aux0/", "aux1/", "")):
        p = out.boxes.shape[2]
        got |= {
            f"{name}pred_boxes": (out.boxes[i].reshape(1, -1, 4), table.BOXES),
            f"{name}pred_ious": (out.pred_ious[i], table.IOUS),
            f"{name}pred_masks": (masks[i].reshape(1, p * 6, *masks.shape[-2:]), table.MASKS),
        }
        if out.object_logits is not None:
            logits = {"": out.object_logits, "_part": out.part_logits}
            got |= {
                f"{name}pred_logits{k}": (x[i].reshape(1, p * 6, -1), table.CLASS_LOGITS)
                for k, x in logits.items()
            }
    return got


def _internals(sown, tokens, pyramid):
    """Names of the reference for what the decoder holds between the layers."""
    inside = sown["intermediates"]["decoder"]
    layers, states = inside["layers"][0], inside["states"][0]
    once = INTERACTIVE.apply(
        {"params": _params()}, states.outputs, method=lambda m, x: m.decoder.heads.norm(x)
    )
    shapes = [level.shape[1:3] for level in pyramid.levels[::-1]]
    sizes = [h * w for h, w in shapes]
    got = {
        "tgt": (tokens.content.reshape(-1, 1, 64), table.FEATURES),
        "refpoints_unsigmoid": (
            tokens.references[0].repeat(6, axis=0)[:, None],
            table.BOXES,
        ),
        "spatial_shapes": (np.array(shapes), table.EXACT),
        "level_start_index": (np.cumsum([0, *sizes[:-1]]), table.EXACT),
    }
    for i in range(3):
        for key in ("query_sine", "query_pos", "self_attn_out"):
            got[f"layer{i}_{key}"] = (layers[key][i].swapaxes(0, 1), table.FEATURES)
        got[f"layer{i}_cross_attn_out"] = (layers["cross_attn_out"][i], table.FEATURES)
        got[f"layer{i}_out"] = (states.outputs[i].swapaxes(0, 1), table.FEATURES)
        got[f"hs{i}"] = (once[i], table.FEATURES)
    for i in range(4):
        got[f"reference{i}"] = (states.references[i], table.BOXES)
    return got


@pytest.mark.parametrize("file", FILES)
def test_normalised_input(file):
    got = _encoded(file)[1].transpose(0, 3, 1, 2)
    compare(file, "input_normalized_padded", got, table.FEATURES)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", ["dec_one", "dec_five"])
def test_decoder_step_by_step(file, name):
    points = golden(file)[f"{name}/points_padded"]
    (out, tokens, masks), sown = _run(file, points)
    got = _predictions(out, masks) | _internals(sown, tokens, _encoded(file)[0])
    _compare_all(file, f"{name}/", got, inputs=["points_padded"])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("name", "points", "type_index", "isolate"),
    [
        ("dec_five_separately", "dec_five/points_padded", 0, True),
        ("dec_box", "dec_box/points_padded", 0, False),
        ("dec_five_pb1", "dec_five/points_padded", 1, False),
    ],
)
def test_decoder_variants(file, name, points, type_index, isolate):
    (out, _, masks), _ = _run(file, golden(file)[points], type_index, isolate=isolate)
    _compare_all(
        file, f"{name}/", _predictions(out, masks), inputs=["points_padded", "boxes_cxcywh"]
    )


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("name", "tokens"),
    [("demo_one", range(6)), ("demo_five", range(6)), ("demo_five_level13", (3, 0))],
)
def test_demo(file, name, tokens):
    data, (pyramid, _, (h, w)) = golden(file), _encoded(file)
    clicks = data[f"{name.removesuffix('_level13')}/prompt_cxcywh"]
    scale = np.float32([w / 160, h / 128, w / 160, h / 128])
    (out, _, masks), _ = _run(file, clicks * scale)
    chosen = np.array(tokens)
    masks = masks[-1].reshape(len(clicks), 6, *masks.shape[-2:])[:, chosen]
    flat = masks.reshape(-1, *masks.shape[-2:])
    full = resize_bilinear(flat[..., None], (128, 160))[:, :h, :w, 0]
    is_half = data[f"{name}/masks_every_4th"].dtype == np.float16
    tolerance = table.HALF_PRECISION if is_half else table.MASKS
    found = table.full_size_masks(data, name, full, tolerance)
    got = {
        "masks_every_4th": (found["masks_every_4th"], tolerance),
        "masks_positive": (found["masks_positive"], table.EXACT),
        "ious": (out.pred_ious[-1][..., chosen], table.IOUS),
    }
    _compare_all(file, f"{name}/", got, inputs=["prompt_cxcywh"])
    assert len(pyramid.levels) == 4


def _visible(file, boxes, type_index):
    """Which token reads which in the first self-attention, found by moving each token."""
    pyramid, _, _ = _encoded(file)

    def first_attention(model, shift):
        tokens = model.prompt_encoder(_prompts(boxes, type_index))
        content = tokens.content.reshape(1, -1, 64) + shift
        small = Pyramid(levels=tuple(x[:, :1, :1] for x in pyramid.levels), mask_features=None)
        model.decoder(
            content, jnp.repeat(tokens.references, 6, axis=1), make_memory(small.levels), group=6
        )

    def run(shift):
        _, sown = INTERACTIVE.apply(
            {"params": _params()}, shift, method=first_attention, mutable="intermediates"
        )
        return sown["intermediates"]["decoder"]["layers"][0]["self_attn_out"][0, 0]

    count = 6 * len(boxes)
    shifts = jnp.eye(count)[:, None, :, None] * jnp.linspace(-1, 1, 64)[None, None, None]
    moved = jax.jit(jax.vmap(run))(shifts) - run(jnp.zeros((1, count, 64)))[None]
    return np.asarray(jnp.abs(moved).max(-1).T > 1e-4)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", ["train_nonoise", "train_noise"])
def test_training_queries(file, name):
    data = golden(file)
    boxes, types = data[f"{name}/boxes_dn"], data[f"{name}/pb"].astype(np.int32)
    noise = {}
    if name == "train_noise":
        is_box = np.arange(len(boxes)) >= data[f"{name}/box_start"]
        noise = {"noise": data[f"{name}/rand"], "is_box": jnp.asarray(is_box)[None]}
    (out, tokens, masks), _ = _run(file, boxes, types, isolate=True, **noise)
    references = tokens.references.repeat(6, axis=1)
    got = _predictions(out, masks) | {
        "query_label": (tokens.content.reshape(1, -1, 64), table.FEATURES),
        "query_bbox_unsigmoid": (references, table.BOXES),
        "attn_mask": (~_visible(file, boxes, types), table.EXACT),
    }
    _compare_all(file, f"{name}/", got, inputs=["boxes_dn", "pb", "box_start", "rand"])


@pytest.mark.parametrize("file", FILES)
def test_class_logits(file):
    data = golden(file)
    text = TextTable(**{k: jnp.asarray(data[f"cls/{v}"]) for k, v in NAMES.items()})
    (out, _, masks), _ = _run(file, data["cls/points_padded"], text=text)
    inputs = ["points_padded", *NAMES.values()]
    _compare_all(file, "cls/", _predictions(out, masks), inputs)


@jax.jit
def _decode_generic(params, pyramid, text, denoising):
    def run(model):
        out = model.decode_generic(pyramid, text, denoising=denoising)
        return out, None if denoising is None else model.denoising(denoising, text)

    return GENERIC.apply({"params": params}, method=run, mutable="intermediates")


def _generic_predictions(prefix, out, pyramid):
    """Reference names of one prediction without a layer axis."""
    return {
        f"{prefix}pred_logits": (out.object_logits, table.CLASS_LOGITS),
        f"{prefix}pred_boxes": (out.boxes, table.BOXES),
        f"{prefix}pred_masks": (mask_logits(out.mask_embed, pyramid.mask_features), table.MASKS),
    }


def _layers_of(out, names, pyramid):
    got = {}
    for i, name in enumerate(names):
        got |= _generic_predictions(name, jax.tree.map(lambda x, i=i: x[i], out), pyramid)
    return got


def _generic(denoising):
    pyramid = _encoded("tiny_image_a")[0]
    names = jnp.asarray(golden("generic_openseed")["text_table"])
    text = TextTable(objects=names, parts=jnp.zeros((0, 48)))
    (out, noised), sown = _decode_generic(_generic_params(), pyramid, text, denoising)
    return pyramid, out, noised, sown["intermediates"]["selected"][0]


def test_generic_inference():
    pyramid, out, _, selected = _generic(None)
    got = _layers_of(out.layers, ("aux0/", "aux1/", "aux2/", ""), pyramid)
    got |= _generic_predictions("interm/", out.proposals, pyramid)
    got["topk_proposals"] = (selected, table.EXACT)
    _compare_all("generic_openseed", "infer/", got)


def test_generic_training_with_denoising():
    data = golden("generic_openseed")
    labels = jnp.asarray(data["gt/labels"], jnp.int32)[None]
    targets = DenoisingTargets(
        boxes=jnp.asarray(data["gt/boxes_cxcywh"])[None],
        object_id=labels,
        part_id=jnp.full_like(labels, -1),
        instance_valid=jnp.ones(labels.shape, bool),
        noise=jnp.asarray(data["train/noise_rand"])[None],
    )
    pyramid, out, noised, _ = _generic(targets)
    layers = ("aux0/", "aux1/", "aux2/", "final/")
    got = _layers_of(out.layers, layers, pyramid)
    got |= _layers_of(out.denoising, [f"dn_{name}" for name in layers], pyramid)
    got |= _generic_predictions("interm/", out.proposals, pyramid)
    got |= {
        "dn_query_label": (noised.content, table.FEATURES),
        "dn_query_bbox_unsigmoid": (noised.references, table.BOXES),
        "attn_mask": (attention_mask(noised.queries, 20)[0], table.EXACT),
        "dn_pad_size": (noised.queries.valid.sum(), table.EXACT),
        "dn_scalar": (out.denoising_queries.num_groups[0], table.EXACT),
    }
    _compare_all("generic_openseed", "train/", got, inputs=["noise_rand"])
