"""Swin against recorded numbers of every block, and its own rules on odd sizes."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semsam_jax.convert.from_torch import from_torch
from semsam_jax.convert.names import unwrap
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.core.backend import compiling_for
from semsam_jax.models.presets import PRESETS, SwinConfig
from semsam_jax.models.swin import PatchMerging, Swin, WindowAttention, drop_path_scales
from tests.golden.table import FEATURES, compare

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def params() -> dict:
    state = unwrap(read_state_dict(GOLDEN / "tiny_ref.pth"))
    tree = from_torch(state, TINY, parts=["backbone"]).params
    return jax.tree.map(jnp.asarray, tree["backbone"])


def load(image: str) -> tuple[dict[str, np.ndarray], jax.Array]:
    with np.load(GOLDEN / f"tiny_image_{image}.npz") as file:
        data = {key[5:]: file[key] for key in file.files if key.startswith("swin/")}
        return data, jnp.asarray(file["input_normalized_padded"].transpose(0, 2, 3, 1))


@pytest.mark.parametrize("image", ["a", "b"])
def test_maps(params: dict, image: str) -> None:
    _, x = load(image)
    maps = jax.jit(Swin(TINY.backbone).apply)({"params": params}, x)
    for i, got in enumerate(maps):
        compare(f"tiny_image_{image}", f"swin/res{i + 2}", got.transpose(0, 3, 1, 2), FEATURES)


def test_every_block(params: dict) -> None:
    data, x = load("a")
    run = jax.jit(lambda p, x: Swin(TINY.backbone).apply(p, x, mutable="intermediates"))
    inside = run({"params": params}, x)[1]["intermediates"]

    def check(got: jax.Array, name: str) -> None:
        compare("tiny_image_a", f"swin/{name}", got.reshape(data[name].shape), FEATURES)

    check(inside["patch_embed_out"][0].transpose(0, 3, 1, 2), "patch_embed")
    for stage in range(4):
        (blocks,) = inside[f"stage{stage}"]["blocks"]
        for i, block in enumerate(blocks):
            check(block[0], f"stage{stage}_block{i}")
        if stage < 3:
            check(inside[f"downsample{stage}_out"][0], f"stage{stage}_downsample")


def test_any_size(params: dict) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 45, 71, 3)), jnp.float32)
    maps = jax.jit(Swin(TINY.backbone).apply)({"params": params}, x)
    assert [m.shape[1:3] for m in maps] == [(12, 18), (6, 9), (3, 5), (2, 3)]


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_of_all_images_on_one_axis_change_nothing(shift: int) -> None:
    attention = WindowAttention(num_heads=2, window=4, shift=shift)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 10, 7, 8)), jnp.float32)
    params = attention.init(jax.random.key(0), x)
    want = attention.apply(params, x)
    with compiling_for("tpu"):
        np.testing.assert_allclose(attention.apply(params, x), want, atol=1e-6)


def test_remat_changes_no_gradient() -> None:
    config = SwinConfig(embed_dim=8, depths=(2,), num_heads=(2,), window_size=3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 21, 30, 3)), jnp.float32)
    params = jax.jit(Swin(config).init)(jax.random.key(0), x)["params"]

    def loss(p: dict, remat: str) -> jax.Array:
        return jnp.sum(jnp.sin(Swin(config, remat=remat).apply({"params": p}, x)[0]))

    grads = [jax.jit(jax.grad(loss), static_argnums=1)(params, remat) for remat in ("none", "full")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *grads)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads[0]["stage0"]))


@pytest.mark.nightly  # two sizes, forward and backward
def test_fresh_weights_have_bounded_gradients_beside_an_image() -> None:
    """A canvas is zero outside its image; norms of vectors of length 0 would overflow there."""
    config = SwinConfig(embed_dim=24, depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8), window_size=4)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 256, 256, 3)), jnp.float32)
    canvas = jnp.zeros_like(image).at[:, :64, :64].set(image[:, :64, :64])
    params = jax.jit(Swin(config).init)(jax.random.key(0), image)["params"]

    @jax.jit
    def gradients(x: jax.Array) -> dict:
        return jax.grad(
            lambda p: sum(jnp.sin(m).mean() for m in Swin(config).apply({"params": p}, x))
        )(params)

    def norm(tree: dict) -> float:
        return float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))))

    assert 0 < norm(gradients(canvas)) < 10 * norm(gradients(image))


def test_bfloat16_stays_close(params: dict) -> None:
    data, x = load("a")
    maps = jax.jit(Swin(TINY.backbone, dtype=jnp.bfloat16).apply)({"params": params}, x)
    assert all(m.dtype == jnp.bfloat16 for m in maps)
    want = data["res3"].transpose(0, 2, 3, 1)
    error = np.abs(np.asarray(maps[1], np.float32) - want)
    assert error.mean() < 0.02 * np.abs(want).mean()


def test_merging_joins_columns_first() -> None:
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    module = PatchMerging()
    params = module.init(jax.random.key(0), x)["params"]
    params["norm"]["bias"] = jnp.zeros(4)
    params["reduction"]["kernel"] = jnp.eye(4)[:, :2]
    out = module.apply({"params": params}, x)[0, 0, 0]
    normed = (np.array([0, 2, 1, 3]) - 1.5) / np.sqrt(1.25 + 1e-5)
    np.testing.assert_allclose(out, normed[:2], atol=1e-5)


def test_drop_path(params: dict) -> None:
    scales = drop_path_scales(jax.random.key(0), np.array([0.0, 0.25, 0.5]), 4000)
    np.testing.assert_array_equal(scales[0], 1.0)
    assert set(np.unique(scales[2])) == {0.0, 2.0}
    np.testing.assert_allclose(scales.mean(1), 1.0, atol=0.06)
    _, x = load("a")
    model = Swin(TINY.backbone)
    run = jax.jit(lambda key: model.apply({"params": params}, x, train=True, rngs=key)[3])
    runs = [run({"drop_path": jax.random.key(i)}) for i in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-3


def test_no_drop_path_needs_no_key(params: dict) -> None:
    data, x = load("a")
    model = Swin(dataclasses.replace(TINY.backbone, drop_path_rate=0.0))
    got = jax.jit(lambda p: model.apply({"params": p}, x, train=True)[3])(params)
    np.testing.assert_allclose(got, data["res5"].transpose(0, 2, 3, 1), atol=5e-5)


@pytest.mark.parametrize(("preset", "size"), [("swin_t", 27_520_698), ("swin_l", 195_200_000)])
def test_parameter_count_of_real_sizes(preset: str, size: int) -> None:
    model = Swin(PRESETS[preset].backbone)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == pytest.approx(size, rel=0 if preset == "swin_t" else 1e-3)


@pytest.mark.nightly
def test_odd_depth_drops_and_recomputes_paths_like_an_even_one() -> None:
    config = SwinConfig(embed_dim=8, depths=(3,), num_heads=(2,), window_size=3)
    image = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    params = jax.jit(Swin(config).init)(jax.random.key(0), image)

    def loss(params, remat):
        rngs = {"drop_path": jax.random.key(2)}
        maps = Swin(config, remat=remat).apply(params, image, train=True, rngs=rngs)
        return sum(jnp.sum(jnp.sin(x)) for x in maps)

    plain, again = (jax.jit(jax.grad(loss), static_argnums=1)(params, r) for r in ("none", "full"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, again)
    assert set(params["params"]["stage0"]) == {"pairs", "last"}
