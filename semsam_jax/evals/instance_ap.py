"""Average precision of instances (masks or boxes) and average recall of proposals.

Detections of a class are ranked by score; each takes the free ground truth with the largest
IoU >= t; precision is interpolated at 101 recalls.

    AP  = mean of precision over IoU t in .50:.05:.95, classes and recalls
    AR@n = mean over t and classes of the recall reached with n detections per image

The matching itself is `faster_coco_eval`'s (compiled, equal to pycocotools). Scores of -1 ("no
ground truth of this class or size") are excluded from means.

Source: COCO detection challenge, https://cocodataset.org/#detection-eval.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from semsam_jax.core.errors import DataError
from semsam_jax.core.rle import mask_areas, mask_boxes
from semsam_jax.evals.evaluator import Evaluator, exact_mean
from semsam_jax.evals.samples import SIZE_NAMES

AREA_NAMES = ("all", *SIZE_NAMES)


@dataclasses.dataclass(frozen=True)
class InstanceSet:
    """Instances of one image: ground truth, or detections where `scores` are given.

    Attributes:
        classes: int [n] class index.
        rles: COCO RLE dicts, or None for boxes only.
        boxes_xywh: float [n, 4] pixels, or None to take them from the masks.
        scores: float [n] for detections.
        is_crowd: bool [n], ground truth only.
        areas: float [n] pixels for the size classes; None takes the mask's (else the box's)
            area. COCO's own files carry polygon areas, which differ a little.
    """

    classes: np.ndarray
    rles: Sequence[dict] | None = None
    boxes_xywh: np.ndarray | None = None
    scores: np.ndarray | None = None
    is_crowd: np.ndarray | None = None
    areas: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class InstanceResult:
    """Values in 0..1; nan where there is no ground truth.

    Attributes:
        ap: mean over IoU .50:.95.
        ap50, ap75: at one IoU.
        ap_by_size: "small", "medium", "large" -> AP.
        ar: detections per image -> average recall; `ar_by_size` at the largest number.
        class_ap: float64 [v], nan for classes without ground truth.
        class_ap50: float64 [v].
        precision: float64 [v, 101] precision at IoU .50 by recall 0..1, nan likewise.
        num_images, num_truths, num_detections: numbers of what was compared.
    """

    ap: float
    ap50: float
    ap75: float
    ap_by_size: dict[str, float]
    ar: dict[int, float]
    ar_by_size: dict[str, float]
    class_ap: np.ndarray
    class_ap50: np.ndarray
    precision: np.ndarray
    num_images: int
    num_truths: int
    num_detections: int

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a log, percent."""
        out = {"ap": self.ap, "ap50": self.ap50, "ap75": self.ap75}
        out |= {f"ap_{name}": value for name, value in self.ap_by_size.items()}
        out |= {f"ar{count}": value for count, value in self.ar.items()}
        out |= {f"ar_{name}": value for name, value in self.ar_by_size.items()}
        return {name: 100 * value for name, value in out.items()}


class InstanceEvaluator(Evaluator):
    """Collects instances image by image.

    Args:
        num_classes: classes are 0..num_classes-1.
        kind: compare masks or boxes.
        is_class_agnostic: let detections match any class (proposals).
        max_detections: numbers of detections per image for average recall; AP uses the largest
            (COCO: 1, 10, 100; proposals: up to 1000).
    """

    def __init__(
        self,
        num_classes: int,
        kind: Literal["mask", "box"] = "mask",
        *,
        is_class_agnostic: bool = False,
        max_detections: tuple[int, ...] = (1, 10, 100),
    ) -> None:
        self._num_classes = num_classes
        self._kind = kind
        self._is_class_agnostic = is_class_agnostic
        self._max_detections = max_detections
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was processed."""
        self._images: dict[str, tuple] = {}

    def process(
        self, image_id: str, size_hw: tuple[int, int], truth: InstanceSet, detected: InstanceSet
    ) -> None:
        """Adds one image.

        Raises:
            DataError: the image was added before, a class is unknown, masks are missing.
        """
        if image_id in self._images:
            raise DataError(f"InstanceEvaluator: image {image_id!r} was processed twice.")
        if detected.scores is None and len(detected.classes):
            raise DataError(f"InstanceEvaluator: detections of {image_id!r} have no scores.")
        for where, instances in (("truth", truth), ("detections", detected)):
            self._check(f"{where} of {image_id!r}", instances)
        self._images[image_id] = (size_hw, truth, detected)

    def state(self) -> dict:
        """Truth and detections of every image, masks as run lengths."""
        return {
            image_id: {"size_hw": list(size_hw), "truth": vars(truth), "detected": vars(detected)}
            for image_id, (size_hw, truth, detected) in self._images.items()
        }

    def add(self, state: Mapping) -> None:
        """Adds the images of another evaluator."""
        for image_id, row in state.items():
            truth, detected = InstanceSet(**row["truth"]), InstanceSet(**row["detected"])
            self.process(image_id, tuple(row["size_hw"]), truth, detected)

    def result(self) -> InstanceResult:
        """Matches all images; ties in score are broken by image id, then by order."""
        images, truths, detections = [], [], []
        for number, image_id in enumerate(sorted(self._images), start=1):
            (height, width), truth, detected = self._images[image_id]
            images.append({"id": number, "height": height, "width": width})
            truths += self._records(truth, number, len(truths))
            detections += self._records(detected, number, len(detections))
        categories = [{"id": c + 1, "name": str(c)} for c in range(self._num_classes)]
        common = {"images": images, "categories": categories}
        evaluation = COCOeval_faster(
            COCO({**common, "annotations": truths}),
            COCO({**common, "annotations": detections}),
            "segm" if self._kind == "mask" else "bbox",
        )
        evaluation.params.maxDets = list(self._max_detections)
        evaluation.params.useCats = int(not self._is_class_agnostic)
        evaluation.evaluate()
        evaluation.accumulate()
        return self._summary(evaluation, len(images), len(truths), len(detections))

    def _check(self, where: str, instances: InstanceSet) -> None:
        classes = np.asarray(instances.classes)
        if len(classes) == 0:
            return
        if classes.min() < 0 or classes.max() >= self._num_classes:
            raise DataError(
                f"InstanceEvaluator: {where}: classes {classes.min()}..{classes.max()}, expected "
                f"0..{self._num_classes - 1}."
            )
        has_masks = instances.rles is not None
        if not has_masks and (self._kind == "mask" or instances.boxes_xywh is None):
            raise DataError(
                f"InstanceEvaluator: {where}: no masks; give `rles`"
                + ("." if self._kind == "mask" else " or `boxes_xywh`.")
            )

    def _records(self, instances: InstanceSet, image: int, first: int) -> list[dict]:
        """COCO annotation dicts of one image, ids counted on from `first`."""
        count = len(instances.classes)
        if count == 0:
            return []
        boxes = instances.boxes_xywh
        if boxes is None:
            boxes = mask_boxes(instances.rles)
        boxes = np.asarray(boxes, np.float64)
        areas = instances.areas
        if areas is None and self._kind == "mask":
            areas = mask_areas(instances.rles)
        elif areas is None:
            areas = boxes[:, 2] * boxes[:, 3]
        crowd = np.zeros(count, bool) if instances.is_crowd is None else instances.is_crowd
        columns = {
            "id": range(first + 1, first + count + 1),
            "image_id": [image] * count,
            "category_id": (np.asarray(instances.classes) + 1).tolist(),
            "bbox": boxes.tolist(),
            "area": np.asarray(areas, np.float64).tolist(),
            "iscrowd": np.asarray(crowd, np.int64).tolist(),
        }
        if self._kind == "mask":
            columns["segmentation"] = list(instances.rles)
        if instances.scores is not None:
            columns["score"] = np.asarray(instances.scores, np.float64).tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _summary(
        self, evaluation: COCOeval_faster, images: int, truths: int, detections: int
    ) -> InstanceResult:
        # precision [iou, recall, class, area, detections], recall [iou, class, area, detections]
        precision = np.asarray(evaluation.eval["precision"], np.float64)
        recall = np.asarray(evaluation.eval["recall"], np.float64)
        precision[precision < 0] = np.nan
        recall[recall < 0] = np.nan
        ious = np.asarray(evaluation.params.iouThrs)
        at = {q: int(np.flatnonzero(np.isclose(ious, q))[0]) for q in (0.5, 0.75)}
        whole = precision[:, :, :, 0, -1]
        sizes = range(1, len(AREA_NAMES))
        return InstanceResult(
            ap=_mean(whole),
            ap50=_mean(whole[at[0.5]]),
            ap75=_mean(whole[at[0.75]]),
            ap_by_size={AREA_NAMES[a]: _mean(precision[:, :, :, a, -1]) for a in sizes},
            ar={n: _mean(recall[:, :, 0, m]) for m, n in enumerate(self._max_detections)},
            ar_by_size={AREA_NAMES[a]: _mean(recall[:, :, a, -1]) for a in sizes},
            class_ap=whole.mean((0, 1)),
            class_ap50=whole[at[0.5]].mean(0),
            precision=whole[at[0.5]].T,
            num_images=images,
            num_truths=truths,
            num_detections=detections,
        )


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not nan; nan if there are none."""
    return exact_mean(values[~np.isnan(values)])
