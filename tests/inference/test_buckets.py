"""Images of many sizes: few compiled programs, and what padding does to masks."""

import dataclasses

import numpy as np

from semsam_jax.inference import loading
from semsam_jax.inference.loading import LoadedModel
from semsam_jax.inference.predictor import Predictor
from tests.golden.table import assert_masks_recorded
from tests.inference.conftest import DATA

SIZES = [(90, 100), (70, 120), (128, 101), (117, 127), (64, 65), (127, 70)]


def click(model: LoadedModel, image: np.ndarray):
    predictor = Predictor(model, size="native")
    predictor.set_image(image)
    return predictor.predict(point_coords=[[image.shape[1] / 2, image.shape[0] / 2]])


def test_exact_padding_is_the_default_and_equals_reference(tiny_model, golden):
    """Image b is 117 x 150, shown as 128 x 160."""
    image = golden["tiny_inputs"]["image_b"]
    assert tiny_model.pad_to_multiple == 32
    assert tiny_model.frame((117, 150), "native").canvas_hw == (128, 160)
    want = np.load(DATA / "tiny_image_b.npz")
    predictor = Predictor(tiny_model, size="native")
    predictor.set_image(image)
    x, y = want["demo_one/prompt_cxcywh"][0, :2].astype(np.float64) * [150, 117]
    found = predictor.predict(point_coords=[[x, y]], return_logits=True)
    order = list(found.tokens)
    assert_masks_recorded(want, "demo_one", found.masks, 1e-3, order)
    np.testing.assert_allclose(found.scores, want["demo_one/ious"][0, 0, order], atol=5e-5)


def test_buckets_compile_one_program_for_many_sizes(tiny_model, image_a):
    model = dataclasses.replace(tiny_model, pad_to_multiple=128)
    images = [image_a[:h, :w] for h, w in SIZES]
    before = [f._cache_size() for f in (loading._encode, loading._decode)]
    answers = [click(model, image) for image in images]
    after = [f._cache_size() for f in (loading._encode, loading._decode)]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1]
    for answer, size in zip(answers, SIZES, strict=True):
        assert answer.masks.shape == (6, *size)


def test_the_square_canvas_of_own_weights_is_one_program(tiny_model, image_a):
    model = dataclasses.replace(tiny_model, prompt_preset="default")
    assert {model.frame(size, 96).canvas_hw for size in SIZES} == {(96, 96)}
    before = loading._encode._cache_size()
    for h, w in SIZES:
        predictor = Predictor(model, size=96)
        predictor.set_image(image_a[:h, :w])
        assert predictor.predict(point_coords=[[w / 2, h / 2]]).masks.shape == (6, h, w)
    assert loading._encode._cache_size() - before <= 1  # none if another test had this canvas


def test_a_wider_canvas_is_not_exact(tiny_model, image_a):
    """The network sees padding: a bucket gives other masks, so it must be asked for."""
    bucket = dataclasses.replace(tiny_model, pad_to_multiple=128)
    image = image_a[:117, :150]  # 128 x 160 exactly, 128 x 256 in the bucket
    exact, wide = click(tiny_model, image), click(bucket, image)
    assert exact.masks.shape == wide.masks.shape == (6, 117, 150)
    assert (exact.masks != wide.masks).any()
