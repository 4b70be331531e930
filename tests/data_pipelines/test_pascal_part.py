"""PASCAL Part: the codes of its parts, and the whole tree of them."""

import dataclasses

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data_pipelines import check, findings
from data_pipelines.sources import open_source
from data_pipelines.sources.pascal_part import full_part, merged_part
from data_pipelines.sources.single_dataset import open_single_dataset
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax.core.errors import ConfigError, DataError
from tests.data_pipelines.trees import SceneInstance, make_scene, write_scenes


def decode(instance) -> np.ndarray:
    return coco_mask.decode(instance.rle).astype(bool)


def test_pascal_part_whole_tree(tmp_path):
    tree = build_vocabulary(["pascal_part"], pascal_parts="full")
    assert tree.num_parts == 91
    masks = np.zeros((5, 48, 64), bool)
    for number, mask in enumerate(masks):
        mask[5 : 40 - 5 * number, 5:50] = True
    codes = ("luarm", "llarm", "lebrow", "lfho")
    parts = [
        SceneInstance(mask, "person", code, parent=0)
        for mask, code in zip(masks[1:], codes, strict=True)
    ]
    scene = make_scene("pascal_part", 1)
    whole = SceneInstance(masks[0], "person")
    scenes = [dataclasses.replace(scene, instances=(whole, *parts))]
    write_scenes("pascal_part", tmp_path, "train", scenes)
    found = open_source("pascal_part", tmp_path, "train", tree, parts="full")[0].instances
    names = [tree.entry(i.part_id).text if i.part_id >= 0 else "" for i in found]
    assert names == [
        "", "left arm", "left upper arm", "left lower arm", "left eyebrow", "left front hoof",
    ]  # fmt: skip
    assert [i.parent for i in found] == [-1, 0, 1, 1, 0, 0]
    np.testing.assert_array_equal(decode(found[1]), masks[1] | masks[2])
    for part, mask in zip(found[2:], masks[1:], strict=True):
        np.testing.assert_array_equal(decode(part), mask)
    alone = open_single_dataset("pascal_part", tmp_path, "train", {"parts": "full"})
    assert alone[0].instances == found
    with pytest.raises(ConfigError, match="'merged' or 'full'"):
        open_source("pascal_part", tmp_path, "train", tree, parts="raw")
    with pytest.raises(ConfigError, match="pascal_parts='raw'"):
        build_vocabulary(pascal_parts="raw")


def test_an_unknown_pascal_part_breaks_its_record_only(tmp_path):
    tree = build_vocabulary(["pascal_part"], pascal_parts="full")
    scenes = [make_scene("pascal_part", number) for number in (1, 2)]
    odd = dataclasses.replace(scenes[0].instances[2], part="antenna")
    scenes[0] = dataclasses.replace(scenes[0], instances=(*scenes[0].instances[:2], odd))
    write_scenes("pascal_part", tmp_path, "train", scenes)
    source = open_source("pascal_part", tmp_path, "train", tree, parts="full")
    with pytest.raises(DataError, match="part 'antenna' is none of the data set's codes"):
        source[0]
    assert len(source[1].instances) == 3


def test_a_word_outside_the_pairs_is_no_negative_in_its_image(tmp_path):
    """The headlight of a bicycle is none of the 93 pairs, and a headlight all the same."""
    vocabulary = build_vocabulary(["pascal_part"])
    scene = make_scene("pascal_part", 1)
    wheel, light = (
        SceneInstance(scene.instances[2].mask, "bicycle", code, parent=0)
        for code in ("fwheel", "headlight_1")
    )
    whole = dataclasses.replace(scene.instances[0], whole="bicycle")
    scenes = [dataclasses.replace(scene, instances=(whole, wheel, light))]
    write_scenes("pascal_part", tmp_path, "train", scenes)
    example = open_source("pascal_part", tmp_path, "train", vocabulary)[0]
    parts = [vocabulary.entry(i.part_id).name for i in example.instances if i.part_id >= 0]
    assert parts == ["wheel"]
    object_id = vocabulary.object_index("pascal_part", "bicycle")
    part_id = vocabulary.part_index("pascal_part", "headlight")
    assert example.partial == ((object_id, part_id),)
    (unused,) = example.unused
    assert (unused.reason, unused.count) == (findings.OTHER_CLASS, 1)
    assert "headlight of a bicycle" in unused.named[0]


def test_listed_images_without_annotations_are_told(tmp_path):
    write_scenes("pascal_part", tmp_path, "train", [make_scene("pascal_part", 1)])
    source = open_source("pascal_part", tmp_path, "train", build_vocabulary(["pascal_part"]))
    assert source.example_ids == ("2010_000001",)
    (line,) = check.check(source).unused
    assert line == "1 image record not used, no annotation record for it: 2010_999999"


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ("head", ("", "head")),
        ("lear", ("l", "ear")),
        ("llarm", ("l", "arm")),
        ("luarm", ("l", "arm")),
        ("lleg", ("l", "leg")),
        ("lfuleg", ("lf", "leg")),
        ("rbpa", ("rb", "paw")),
        ("fwheel", ("f", "wheel")),
        ("wheel_2", ("2", "wheel")),
        ("bliplate", ("b", "license plate")),
        ("leftmirror", ("left", "mirror")),
        ("chainwheel", ("chainwheel", "")),
        ("lebrow", ("lebrow", "")),
        ("lfho", ("lfho", "")),
        ("rear", ("r", "ear")),
    ],
)
def test_pascal_part_codes(code, meaning):
    assert merged_part(code) == meaning


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ("head", ("", "head")),
        ("lear", ("", "left ear")),
        ("rear", ("", "right ear")),
        ("llarm", ("left arm", "left lower arm")),
        ("lleg", ("", "left leg")),
        ("llleg", ("left leg", "left lower leg")),
        ("lfleg", ("", "left front leg")),
        ("lflleg", ("left front leg", "left front lower leg")),
        ("rbpa", ("", "right back paw")),
        ("wheel_2", ("", "wheel")),
        ("bliplate", ("", "back license plate")),
        ("leftmirror", ("", "left mirror")),
        ("leftside", ("", "left side")),
        ("hfrontside", ("", "head front side")),
        ("cleftside_3", ("", "coach left side")),
        ("antenna", ("", "")),
    ],
)
def test_pascal_part_codes_of_the_whole_tree(code, meaning):
    assert full_part(code) == meaning
