"""Encodes examples as records with the features that TFDS documents, and decodes them.

A record holds the image's stored bytes and each mask's compressed RLE, never pixels. Classes
are numbered within the dataset, so that records fit every mixture of datasets.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.schema import RawExample, RawInstance
from data_pipelines.vocabulary import Vocabulary


def features() -> tfds.features.FeaturesDict:
    """The fields of a record, as TFDS stores them with the data."""
    return tfds.features.FeaturesDict(
        {
            "example_id": tfds.features.Text(doc="unique within the dataset"),
            "image": tfds.features.Tensor(
                shape=(), dtype=np.object_, doc="the image's file, as stored"
            ),
            "height": tfds.features.Scalar(np.int32, doc="pixels of the annotations' frame"),
            "width": tfds.features.Scalar(np.int32, doc="pixels of the annotations' frame"),
            "is_displayed": tfds.features.Scalar(
                np.bool_, doc="the frame is that of the displayed image, its EXIF applied"
            ),
            "instances": _instances("classes and parent count from 0, -1 is none"),
            "ignored": _instances("crowd regions, the same fields"),
            "has_annotated": tfds.features.Scalar(
                np.bool_, doc="whether the image is annotated for the classes below only"
            ),
            "annotated": _classes("classes whose every instance is annotated"),
            "partial": _classes("classes of which instances may be missing"),
            "is_exclusive": tfds.features.Scalar(
                np.bool_, doc="whether an instance is of none but its own class"
            ),
        }
    )


def _instances(doc: str) -> tfds.features.Sequence:
    text = tfds.features.Tensor(shape=(), dtype=np.object_)
    return tfds.features.Sequence(
        {
            "rle": text,  # COCO's compressed counts; empty where there is only a box
            "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),  # x0, y0, x1, y1 pixels
            "object_id": np.int32,
            "part_id": np.int32,
            "parent": np.int32,
            "is_thing": np.bool_,
            "is_pseudo": np.bool_,
        },
        doc=doc,
    )


def _classes(doc: str) -> tfds.features.Sequence:
    return tfds.features.Sequence({"object_id": np.int32, "part_id": np.int32}, doc=doc)


class RecordEncoder:
    """Examples of one dataset to record bytes."""

    def __init__(self, dataset: str, vocabulary: Vocabulary):
        self._features = features()
        self._serializer = example_serializer.ExampleSerializer(
            self._features.get_serialized_info()
        )
        self._first_object = vocabulary.object_slice(dataset).start
        self._first_part = vocabulary.part_slice(dataset).start

    def __call__(self, example: RawExample) -> bytes:
        """Returns the record of an example."""
        fields = {
            "example_id": example.example_id.encode("utf-8", "surrogateescape"),
            "image": example.image,
            "height": example.height,
            "width": example.width,
            "is_displayed": example.is_displayed,
            "instances": self._columns(example.instances),
            "ignored": self._columns(example.ignored),
            "has_annotated": example.annotated is not None,
            "annotated": self._pairs(example.annotated or ()),
            "partial": self._pairs(example.partial),
            "is_exclusive": example.is_exclusive,
        }
        record = self._serializer.get_tf_example(self._features.encode_example(fields))
        # The fields are a map: otherwise their order, and a file's hash, would vary.
        return record.SerializeToString(deterministic=True)

    def _pairs(self, classes: Sequence[tuple[int, int]]) -> dict:
        return {
            "object_id": [_shifted(object_id, -self._first_object) for object_id, _ in classes],
            "part_id": [_shifted(part_id, -self._first_part) for _, part_id in classes],
        }

    def _columns(self, items: Sequence[RawInstance]) -> dict:
        return {
            "rle": [b"" if item.rle is None else item.rle["counts"] for item in items],
            "box": np.array([item.box for item in items], np.float32).reshape(-1, 4),
            "object_id": [_shifted(item.object_id, -self._first_object) for item in items],
            "part_id": [_shifted(item.part_id, -self._first_part) for item in items],
            "parent": [item.parent for item in items],
            "is_thing": [item.is_thing for item in items],
            "is_pseudo": [item.is_pseudo for item in items],
        }


class RecordDecoder:
    """Record bytes to examples, with the class numbers of a vocabulary.

    Parses the protocol buffer directly, which is several times faster than TFDS.
    """

    def __init__(self, dataset: str, vocabulary: Vocabulary):
        self._dataset = dataset
        self._first_object = vocabulary.object_slice(dataset).start
        self._first_part = vocabulary.part_slice(dataset).start

    def __call__(self, record: bytes) -> RawExample:
        """Returns the example of a record.

        Raises:
            ValueError: the bytes are no record of this kind.
        """
        try:
            field = tf_example_pb2.Example.FromString(record).features.feature
        except DecodeError as error:
            raise ValueError(f"not a record: {error}") from error
        height = field["height"].int64_list.value[0]
        width = field["width"].int64_list.value[0]
        return RawExample(
            dataset=self._dataset,
            example_id=field["example_id"].bytes_list.value[0].decode("utf-8", "surrogateescape"),
            image=field["image"].bytes_list.value[0],
            height=height,
            width=width,
            # Records of earlier releases have stored frames only and lack the field.
            is_displayed=bool(next(iter(field["is_displayed"].int64_list.value), False)),
            instances=self._instances(field, "instances", [height, width]),
            ignored=self._instances(field, "ignored", [height, width]),
            annotated=(
                self._pairs(field, "annotated") if _is_set(field, "has_annotated") else None
            ),
            partial=self._pairs(field, "partial"),
            is_exclusive=_is_set(field, "is_exclusive"),
        )

    def _pairs(self, field: Mapping, group: str) -> tuple[tuple[int, int], ...]:
        ids = (field[f"{group}/{name}"].int64_list.value for name in ("object_id", "part_id"))
        return tuple(
            (_shifted(object_id, self._first_object), _shifted(part_id, self._first_part))
            for object_id, part_id in zip(*ids, strict=True)
        )

    def _instances(self, field: Mapping, group: str, size: list[int]) -> tuple[RawInstance, ...]:
        columns = zip(
            field[f"{group}/rle"].bytes_list.value,
            np.array(field[f"{group}/box"].float_list.value, np.float64).reshape(-1, 4).tolist(),
            *(field[f"{group}/{name}"].int64_list.value for name in _WHOLE_NUMBERS),
            strict=True,
        )
        return tuple(
            RawInstance(
                rle={"size": list(size), "counts": counts} if counts else None,
                box=tuple(box),
                object_id=_shifted(object_id, self._first_object),
                part_id=_shifted(part_id, self._first_part),
                parent=parent,
                is_thing=bool(is_thing),
                is_pseudo=bool(is_pseudo),
            )
            for counts, box, object_id, part_id, parent, is_thing, is_pseudo in columns
        )


_WHOLE_NUMBERS = ("object_id", "part_id", "parent", "is_thing", "is_pseudo")


def _is_set(field: Mapping, name: str) -> bool:
    return bool(field[name].int64_list.value and field[name].int64_list.value[0])


def _shifted(index: int, by: int) -> int:
    return index + by if index >= 0 else -1
