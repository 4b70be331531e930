"""From a reader's crowd regions to scores that leave them alone."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.schema import RawExample
from data_pipelines.sources.base import Source
from semsam_jax.core.structs import TextTable
from semsam_jax.evals.dataset_samples import EvalDataset, EvalFrame
from semsam_jax.evals.generic import evaluate_generic
from semsam_jax.evals.one_click import evaluate_one_click
from tests.data_pipelines.fake_source import VOCABULARY, encode_image, mask_instance
from tests.evals.fakes import ReadingGeneric, ReadingModel

STRIPS = np.repeat(np.kron([0, 1, 1, 2, 2, 0, 0, 0], np.ones(4, int))[None], 32, axis=0)
TEXT = TextTable(objects=np.zeros((2, 4), np.float32), parts=np.zeros((0, 4), np.float32))


class FakeImages(Source):
    """A cat, and a crowd of dogs, as a reader gives them."""

    def __init__(self, has_crowd: bool):
        super().__init__("coco", ".", "val", VOCABULARY)
        self.example_ids, self.has_crowd = ["1"], has_crowd

    def _read(self, position: int) -> RawExample:
        dogs = mask_instance(STRIPS == 2, object_id=1)
        return RawExample(
            dataset="coco",
            example_id="1",
            image=encode_image(STRIPS.astype(np.uint8)[..., None].repeat(3, axis=2), "PNG"),
            height=32,
            width=32,
            instances=(mask_instance(STRIPS == 1, object_id=0),),
            ignored=(dogs,) if self.has_crowd else (),
        )


def dataset(has_crowd: bool, in_image_frame: bool = False) -> EvalDataset:
    frame = EvalFrame(32, in_image_frame=in_image_frame)
    return EvalDataset(FakeImages(has_crowd), frame, is_sample=False)


@pytest.mark.parametrize("in_image_frame", [False, True])
def test_crowd_is_never_clicked(in_image_frame):
    data = dataset(has_crowd=True, in_image_frame=in_image_frame)
    (sample,) = data.samples()
    assert sample.flags("is_crowd", False).tolist() == [False, True]
    np.testing.assert_array_equal(sample.truth_mask(1), STRIPS == 2)
    result = evaluate_one_click(ReadingModel(), {}, data.samples())
    assert (result.num_instances, result.num_skipped) == (1, 1)
    assert result.iou_oracle == 1.0


def test_detections_on_a_crowd_are_neither_right_nor_wrong():
    # The detector finds the cat, and with the same confidence the dogs.
    scores = {}
    for has_crowd in (True, False):
        data = dataset(has_crowd)
        classes, names, _ = data.class_list()
        assert names == ["cat", "dog"]
        result = evaluate_generic(ReadingGeneric(), {}, TEXT, data.image_samples(), classes)
        scores[has_crowd] = result
    assert scores[True].mask_ap.ap == scores[True].box_ap.ap == 1.0
    assert scores[True].mask_ap.num_truths == 2  # the crowd is told, and ignored
    assert set(scores[True].panoptic.by_class) == {0}
    assert scores[True].panoptic.all["pq"] == 1.0


def test_crowd_of_the_same_class_shields_detections():
    # Strip 2 is a crowd of cats here and the model calls both strips cats: without the
    # crowd region the second detection is wrong and, ranked first on a tie, halves AP.
    class Cats(ReadingGeneric):
        def _read(self, features, text):
            answers = super()._read(features, text)
            logits = answers.object_logits.at[2].set(answers.object_logits[1] + 1.0)
            return answers.replace(object_logits=logits)

    ap = {}
    for has_crowd in (True, False):
        data = dataset(has_crowd)
        classes, _, _ = data.class_list()
        samples = [
            dataclasses.replace(sample, object_ids=[0] * len(sample.masks))
            for sample in data.image_samples()
        ]
        ap[has_crowd] = evaluate_generic(Cats(), {}, TEXT, samples, classes).mask_ap.ap
    assert ap == {True: 1.0, False: 0.5}
