"""The guided filter against ridge regressions window by window, and what it does to a mask."""

import dataclasses

import numpy as np
import pytest

from semsam_jax.core.structs import Pyramid
from semsam_jax.inference import guided
from semsam_jax.inference.encoded_image import EncodedImage
from semsam_jax.inference.guided import GuidedUpsampler
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.preprocess import Frame
from semsam_jax.inference.requests import CheckedRequest
from semsam_jax.inference.upsample import upsample_masks


def frame_of(height, width, canvas=64):
    return Frame((height, width), (height, width), (canvas, canvas), "default")


def clicks(*points, positive=True):
    points = np.array(points, float).reshape(-1, 2)
    return CheckedRequest(points, np.full(len(points), positive), np.zeros((0, 4)))


def fake_pyramid():
    """An encoded image whose features nobody reads."""
    return object.__new__(Pyramid)


def disc(canvas, centre, radius, sharpness=1.0):
    """Logits at stride 4 of a disc, positive inside."""
    y, x = np.mgrid[: canvas // 4, : canvas // 4] * 4 + 2
    return (sharpness * (radius - np.hypot(x - centre[0], y - centre[1]))).astype(np.float32)


def ridge_by_windows(colours, p, radius, eps):
    """q by solving every window's least squares on mirrored pixels, without any box filter."""
    pad = [(radius, radius), (radius, radius)]
    height, width = p.shape
    wide = np.pad(colours, [*pad, (0, 0)], mode="symmetric")
    wide_p = np.pad(p, pad, mode="symmetric")
    slopes = np.zeros((height, width, 4))
    for y in range(height):
        for x in range(width):
            window = (slice(y, y + 2 * radius + 1), slice(x, x + 2 * radius + 1))
            design, target = wide[window].reshape(-1, 3), wide_p[window].ravel()
            centred = design - design.mean(0)
            normal = centred.T @ centred / len(target) + eps * np.eye(3)
            a = np.linalg.solve(normal, centred.T @ (target - target.mean()) / len(target))
            slopes[y, x] = *a, target.mean() - a @ design.mean(0)
    wide = np.pad(slopes, [*pad, (0, 0)], mode="symmetric")
    q = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            mean = wide[y : y + 2 * radius + 1, x : x + 2 * radius + 1].mean((0, 1))
            q[y, x] = mean[:3] @ colours[y, x] + mean[3]
    return q


def test_it_is_the_ridge_regression_of_every_window(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(guided, "EPS", 1e-2)
    image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    logits = rng.normal(0, 0.3, (8, 8)).astype(np.float32)
    upsampler = GuidedUpsampler(image, frame_of(24, 32, canvas=32))
    found = upsampler.probability(logits, 0.0)
    row = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)
    low = np.minimum(row.astype(int), 6)
    share = row - low
    wide = logits[low] * (1 - share)[:, None] + logits[low + 1] * share[:, None]
    wide = wide[:, low] * (1 - share) + wide[:, low + 1] * share
    p = 1 / (1 + np.exp(-guided.SHARPNESS * wide[:24, :32]))
    wanted = ridge_by_windows(image.astype(np.float64) / 255, p, 8, 1e-2)
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_the_outline_moves_to_the_edge_of_the_image():
    """A red disc on blue; the logits know it two pixels too small and shifted."""
    y, x = np.mgrid[:64, :64]
    truth = np.hypot(x - 31.5, y - 31.5) < 18
    image = np.where(truth[..., None], (200, 40, 40), (40, 60, 190)).astype(np.uint8)
    upsampler = GuidedUpsampler(image, frame_of(64, 64))
    logits = disc(64, (33.5, 31.5), 16)[None]
    plain = upsample_masks(logits, frame_of(64, 64), (64, 64))[0]
    moved = [upsampler.masks(logits, detail)[0] for detail in (1.0, 0.0)]
    wrong = [(mask != truth).sum() for mask in (plain, *moved)]
    assert wrong[0] > wrong[1] > wrong[2]
    assert wrong[2] < 0.3 * wrong[0]


def test_a_flat_image_changes_nothing_with_all_detail():
    """Without colours there is nothing to follow: q is p smoothed, which the detail undoes."""
    upsampler = GuidedUpsampler(np.full((64, 64, 3), 90, np.uint8), frame_of(64, 64))
    logits = disc(64, (31.5, 31.5), 18)[None]
    plain = upsample_masks(logits, frame_of(64, 64), (64, 64))
    assert (upsampler.masks(logits, 1.0) != plain).sum() <= 4
    assert 0.7 * plain.sum() < upsampler.masks(logits, 0.0).sum() < plain.sum()


def test_a_mask_that_the_filter_would_lose_stays():
    image = np.full((64, 64, 3), 90, np.uint8)
    speck = disc(64, (31.5, 31.5), 4)[None]
    upsampler = GuidedUpsampler(image, frame_of(64, 64))
    assert upsampler.probability(speck[0], 0.0).max() < 0.5
    plain = upsample_masks(speck, frame_of(64, 64), (64, 64))
    assert plain.any()
    np.testing.assert_array_equal(upsampler.masks(speck), plain)


def test_an_image_beyond_the_limit_is_filtered_smaller(monkeypatch):
    monkeypatch.setattr(guided, "MAX_SIDE", 64)
    image = np.zeros((96, 192, 3), np.uint8)
    image[:, 96:] = 255
    frame = Frame((96, 192), (32, 64), (64, 64), "default")
    columns = np.where(np.arange(16) < 8, -4.0, 4.0)
    logits = np.broadcast_to(columns, (16, 16)).astype(np.float32)
    mask = GuidedUpsampler(image, frame).masks(logits[None])[0]
    assert mask.shape == (96, 192)
    assert mask[:, 100:].all()
    assert not mask[:, :92].any()


@pytest.fixture
def half():
    """A mask that ends at column 36 of an image whose edge is at column 38."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 38:] = 255
    side = np.where(np.arange(16) < 9, 4.0, -4.0)
    logits = np.broadcast_to(side, (16, 16)).astype(np.float32)[None]
    frame = frame_of(64, 64)
    return EncodedImage(frame, fake_pyramid(), GuidedUpsampler(image, frame), 1.0), logits


def test_a_click_that_the_plain_mask_is_right_about_stays_right(half):
    encoded, logits = half
    (moved,) = encoded.masks(logits, clicks((5.0, 5.0)))
    assert moved[30, 36]  # as far as the edge of the image
    negative = CheckedRequest(
        np.array([[5.0, 5.0], [36.2, 30.7]]), np.array([True, False]), np.zeros((0, 4))
    )
    (kept,) = encoded.masks(logits, negative)
    assert not kept[30, 36]


def test_the_mask_of_a_box_ends_at_the_box(half):
    encoded, logits = half
    box = CheckedRequest(np.zeros((0, 2)), np.zeros(0, bool), np.array([[0.0, 0.0, 35.0, 64.0]]))
    (mask,) = encoded.masks(logits, box)
    assert mask[:, 30].all()
    assert not mask[:, 35:].any()


def test_a_model_that_wants_it_gives_guided_masks(tiny_model):
    """Of a click the filter's own, of a box within the box; logits stay as they are."""
    config = dataclasses.replace(tiny_model.module.config, guided_upsampling=True)
    model = dataclasses.replace(tiny_model, module=tiny_model.module.clone(config=config))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    answers = []
    for one in (model, tiny_model):
        predictor = Predictor(one)
        predictor.set_image(image)
        answers.append(predictor.predict([[20, 20]]))
    guided_answer, plain = answers
    np.testing.assert_allclose(guided_answer.low_res_logits, plain.low_res_logits, atol=1e-4)
    upsampler = GuidedUpsampler(image, model.frame((48, 64)))
    wanted = upsampler.masks(plain.low_res_logits)
    is_same = (guided_answer.masks == wanted).mean((1, 2)) > 0.99
    is_plain = (guided_answer.masks == plain.masks).all((1, 2))  # where the click would be lost
    assert (is_same | is_plain).all()
    assert not (guided_answer.masks == plain.masks).all()
