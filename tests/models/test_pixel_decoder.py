"""Pixel decoder against recorded numbers of every layer."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.convert.from_torch import from_torch
from semsam_jax.convert.names import unwrap
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.models.pixel_decoder import PixelDecoder, pixel_centres
from semsam_jax.models.presets import PRESETS, PixelDecoderConfig
from tests.golden.table import FEATURES, compare

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def params() -> dict:
    state = unwrap(read_state_dict(GOLDEN / "tiny_ref.pth"))
    tree = from_torch(state, TINY, parts=["pixel_decoder"]).params
    return jax.tree.map(jnp.asarray, tree["pixel_decoder"])


def load(image: str) -> tuple[dict[str, np.ndarray], tuple[jax.Array, ...]]:
    with np.load(GOLDEN / f"tiny_image_{image}.npz") as file:
        data = {key[7:]: file[key] for key in file.files if key.startswith("pixdec/")}
        maps = tuple(jnp.asarray(file[f"swin/res{i}"].transpose(0, 2, 3, 1)) for i in (2, 3, 4, 5))
    return data, maps


@pytest.mark.parametrize("image", ["a", "b"])
def test_pyramid(params: dict, image: str) -> None:
    _, maps = load(image)
    pyramid = jax.jit(PixelDecoder(TINY.pixel_decoder).apply)({"params": params}, maps)
    maps = {f"multi_scale{i}": level for i, level in enumerate(pyramid.levels)}
    for name, got in (maps | {"mask_features": pyramid.mask_features}).items():
        compare(f"tiny_image_{image}", f"pixdec/{name}", got.transpose(0, 3, 1, 2), FEATURES)


def test_every_layer(params: dict) -> None:
    _, maps = load("a")
    model = PixelDecoder(TINY.pixel_decoder)
    run = jax.jit(lambda p, x: model.apply(p, x, mutable="intermediates"))
    inside = run({"params": params}, maps)[1]["intermediates"]
    outputs, added = inside["encoder"]["layers_out"][0]
    for i in range(2):
        compare("tiny_image_a", f"pixdec/enc_layer{i}_out", outputs[i], FEATURES)
        compare("tiny_image_a", f"pixdec/enc_layer{i}_msdeform_out", added[i], FEATURES)
    names = {f"input_proj{i}": f"input_proj{i}" for i in range(4)}
    for ours, theirs in (names | {"adapter": "adapter_1", "fpn": "layer_1"}).items():
        got = inside[f"{ours}_out"][0].transpose(0, 3, 1, 2)
        compare("tiny_image_a", f"pixdec/{theirs}", got, FEATURES)


@pytest.mark.nightly
def test_remat_changes_no_gradient() -> None:
    config = PixelDecoderConfig(
        16, 8, 2, num_heads=2, num_points=1, feedforward_dim=24, norm_groups=4
    )
    rng = np.random.default_rng(0)
    maps = tuple(
        jnp.asarray(rng.normal(size=(2, size, size, 8)), jnp.float32) for size in (16, 8, 4, 2)
    )
    shapes = jax.eval_shape(PixelDecoder(config).init, jax.random.key(0), maps)["params"]
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.2, x.dtype), shapes)

    def loss(p: dict, remat: str) -> jax.Array:
        pyramid = PixelDecoder(config, remat=remat).apply({"params": p}, maps)
        return sum(jnp.sum(jnp.sin(x)) for x in (*pyramid.levels, pyramid.mask_features))

    grads = [jax.jit(jax.grad(loss), static_argnums=1)(params, remat) for remat in ("none", "full")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-4), *grads)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads[0]))


def test_half_precision_ends_in_float32(params: dict) -> None:
    data, maps = load("a")
    half = PixelDecoder(TINY.pixel_decoder, dtype=jnp.bfloat16)
    pyramid = jax.jit(half.apply)({"params": params}, maps)
    assert pyramid.levels[0].dtype == jnp.bfloat16
    assert pyramid.mask_features.dtype == jnp.float32
    want = data["mask_features"].transpose(0, 2, 3, 1)
    assert np.abs(pyramid.mask_features - want).mean() < 0.03 * np.abs(want).mean()


def test_pixel_centres() -> None:
    got = pixel_centres(((1, 2), (2, 1)))
    np.testing.assert_allclose(got, [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]])


@pytest.mark.parametrize(("preset", "size"), [("swin_t", 10_491_904), ("swin_l", 12_630_000)])
def test_parameter_count_of_real_sizes(preset: str, size: int) -> None:
    config = PRESETS[preset]
    maps = tuple(
        jax.ShapeDtypeStruct((1, 64 // s, 64 // s, c), jnp.float32)
        for s, c in zip((4, 8, 16, 32), config.backbone.channels, strict=True)
    )
    shapes = jax.eval_shape(PixelDecoder(config.pixel_decoder).init, jax.random.key(0), maps)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == pytest.approx(size, rel=0 if preset == "swin_t" else 1e-3)
