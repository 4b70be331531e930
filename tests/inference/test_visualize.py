import warnings

import numpy as np
import pytest

from semsam_jax.inference import visualize

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (60, 80, 3), np.uint8)


def _masks():
    masks = np.zeros((3, 60, 80), bool)
    masks[0, 5:50, 5:70], masks[1, 10:20, 10:30], masks[2, 30:55, 50:78] = True, True, True
    return list(masks)


def test_distinct_colours_differ():
    colours = np.array(visualize.distinct_colours(40)).astype(int)
    distance = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(40, dtype=int)
    assert distance.min() > 20
    assert np.abs(colours[1:] - colours[:-1]).sum(-1).min() > 100


def test_overlay_changes_only_the_masks():
    picture = visualize.overlay_masks(IMAGE, _masks()[1:2], points=[], boxes=[])
    changed = (picture != IMAGE).any(-1)
    grown = np.zeros((60, 80), bool)
    grown[8:22, 8:32] = True
    assert changed[12:18, 12:28].mean() > 0.95
    assert not changed[~grown].any()


def test_small_masks_stay_visible_on_large_ones():
    masks = _masks()
    red, blue = (255, 0, 0), (0, 0, 255)
    picture = visualize.overlay_masks(IMAGE, masks[1::-1], [blue, red], opacity=1.0)
    assert (picture[15, 20] == blue).all()
    assert (picture[40, 40] == red).all()


def test_strip_has_one_panel_for_each_level():
    captions = [f"level {i}  IoU 0.9 a very long name of an object" for i in (1, 2, 3)]
    strip = visualize.level_strip(
        IMAGE, _masks(), captions, points=[(20, 15, True), (1, 1, False)], boxes=[(5, 5, 70, 50)]
    )
    assert strip.shape[1] > 3 * 80
    assert strip.dtype == np.uint8


def test_panoptic_view_labels_segments_and_empty_ones_do_no_harm():
    segment_map = np.zeros((60, 80), np.int32)
    segment_map[5:50, 5:70] = 1
    view = visualize.panoptic_view(IMAGE, segment_map, {1: "dog", 2: "nothing"})
    assert view.shape == IMAGE.shape
    assert visualize.panoptic_view(IMAGE, segment_map * 0, {}).shape == IMAGE.shape


def test_extreme_pictures():
    for shape in ((1, 1), (1, 3000), (3000, 2)):
        image = np.zeros((*shape, 3), np.uint8)
        mask = np.ones(shape, bool)
        small = visualize.display_size(image)
        assert max(small.shape) <= 2048
        small_mask = visualize.shrink_mask(mask, small)
        visualize.level_strip(small, [small_mask], ["level 1"], points=[(0, 0, True)])
        visualize.overlay_masks(small, [small_mask])


def test_letters_that_no_font_has_are_named(monkeypatch):
    mask, colour = np.ones((60, 80), bool), [(255, 0, 0)]
    monkeypatch.setattr(visualize, "_INSTALLED_FONTS", ("no such font.ttf",))
    with pytest.warns(UserWarning, match="boxes for letters of '犬': .* install the Noto fonts"):
        visualize.write_labels(IMAGE, [mask], ["犬"], colour)
    with pytest.warns(UserWarning, match="'犬 2'"):
        visualize.level_strip(IMAGE, [mask], ["犬 2"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        visualize.write_labels(IMAGE, [mask], ["dog, 0.9…"], colour)


def test_letters_are_taken_from_an_installed_font():
    if visualize._loaded("DejaVuSans.ttf") is None:
        pytest.skip("DejaVu Sans is not installed")
    mask, colour = np.ones((60, 80), bool), [(255, 0, 0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (
            visualize.write_labels(IMAGE, [mask], [text], colour) for text in ("кот", "дом")
        )
    assert (first != second).any()  # boxes would be the same
