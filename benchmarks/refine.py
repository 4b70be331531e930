"""What a mask as a prompt is worth: IoU before and after a round of refinement.

    python -m benchmarks.refine                                  # the model of the package, sample
    python -m benchmarks.refine --checkpoint DIR --root ROOT --dataset coco --images 100

Every annotated object of held-out images is given a wrong mask, and the model that mask alone
(`mask_input`); then, as in the evaluation of clicks (NoC), that mask with a click in its largest
error. The answer of a round is the one mask that `multimask_output=False` gives. Wrong masks are
the object shrunk, grown, moved, filled to its box, or the model's answer to a click at its centre.
"""

import argparse
import dataclasses
from collections.abc import Iterator

import cv2
import numpy as np

from semsam_jax import Predictor, load_model
from semsam_jax.evals.clicks import centre_click, next_click
from semsam_jax.evals.dataset_samples import EvalFrame, open_dataset
from semsam_jax.evals.samples import EvalSample
from semsam_jax.inference.loading import LoadedModel
from semsam_jax.inference.requests import Request

KINDS = ("shrunk", "grown", "moved", "its box", "answer to a click")
SMALLEST_PX = 400
"""Objects with fewer pixels on the canvas have no room for another mask."""


@dataclasses.dataclass
class Row:
    """IoU with the object: of the wrong mask, with the mask alone, and with a click more."""

    before: list[float] = dataclasses.field(default_factory=list)
    mask: list[float] = dataclasses.field(default_factory=list)
    click: list[float] = dataclasses.field(default_factory=list)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", help="(default: the model of the package)")
    parser.add_argument("--root", default="", help="of the datasets (default: the sample)")
    parser.add_argument("--dataset", default="coco")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--objects", type=int, default=6, help="largest of an image (%(default)s)")
    args = parser.parse_args()
    model = load_model(args.checkpoint)
    frame = EvalFrame(int(model.meta.get("image_size") or 1024))
    samples = open_dataset(args.dataset, args.root or None, "val", frame, args.images).samples()
    rows = measure(model, samples, args.objects)
    print("| wrong mask | objects | its IoU | the mask alone | better | and a click | better |")
    print("| --- " * 7 + "|")
    for kind, row in rows.items():
        print(f"| {kind} | {line(row)} |")


def line(row: Row) -> str:
    """Means in percent, and the share of objects whose mask became better."""
    before = np.array(row.before)
    cells = [f"{len(before)}", f"{100 * before.mean():.1f}"]
    for after in (np.array(row.mask), np.array(row.click)):
        cells += [f"{100 * after.mean():.1f}", f"{100 * (after > before).mean():.0f} %"]
    return " | ".join(cells)


def measure(model: LoadedModel, samples, max_objects: int) -> dict[str, Row]:
    """One round for every kind of wrong mask of every object.

    Args:
        model: from `load_model`.
        samples: annotated images.
        max_objects: the largest of an image that are tried.

    Returns:
        Kind -> IoUs, one for each object.
    """
    rows = {kind: Row() for kind in KINDS}
    predictor = Predictor(model)

    def answer(request: Request) -> np.ndarray:
        # One at a time: requests of a few prompts share one compiled program.
        return predictor.predict_many([request], multimask_output=False)[0].masks[0]

    for sample in samples:
        truths = list(objects(sample, max_objects))
        if not truths:
            continue
        height, width = sample.size_hw
        predictor.set_image(np.ascontiguousarray(sample.image[:height, :width]))
        for truth in truths:
            for kind, row in rows.items():
                if kind == "answer to a click":
                    wrong = answer(Request(point_coords=[centre_click(truth)]))
                else:
                    wrong = spoil(truth, kind)
                if not wrong.any() or (wrong == truth).all():
                    continue
                row.before.append(iou(truth, wrong))
                row.mask.append(iou(truth, answer(Request(mask_input=wrong))))
                row.click.append(iou(truth, answer(corrected(truth, wrong))))
    return rows


def objects(sample: EvalSample, count: int) -> Iterator[np.ndarray]:
    """The largest countable objects of an image that leave room for a wrong mask.

    Args:
        sample: an annotated image.
        count: at most so many.

    Yields:
        bool [h, w].
    """
    things = sample.flags("is_thing", True) & ~sample.flags("is_crowd", False)
    masks = [sample.mask(index) for index in np.flatnonzero(things)]
    masks = [mask for mask in masks if SMALLEST_PX <= mask.sum() < 0.6 * mask.size]
    yield from sorted(masks, key=lambda mask: -int(mask.sum()))[:count]


def spoil(truth: np.ndarray, kind: str) -> np.ndarray:
    """A wrong mask of an object, by about a quarter of its size.

    Args:
        truth: bool [h, w], not empty.
        kind: one of `KINDS`, but the last.

    Returns:
        bool [h, w]; may be empty.
    """
    rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    if kind == "its box":
        box = np.zeros_like(truth)
        box[y0:y1, x0:x1] = True
        return box
    if kind == "moved":
        dy, dx = (y1 - y0) // 4, (x1 - x0) // 4
        matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
        return cv2.warpAffine(truth.astype(np.uint8), matrix, truth.shape[::-1]) > 0
    side = 2 * max(1, round(0.1 * np.sqrt(truth.sum()))) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    change = cv2.erode if kind == "shrunk" else cv2.dilate
    return change(truth.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT) > 0


def corrected(truth: np.ndarray, wrong: np.ndarray) -> Request:
    """A wrong mask with a click in its largest error.

    Args:
        truth: bool [h, w].
        wrong: bool [h, w], another one.
    """
    x, y, is_positive = next_click(truth, wrong)
    return Request(point_coords=[[x, y]], point_labels=[int(is_positive)], mask_input=wrong)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two masks [h, w], 0 to 1."""
    return float((a & b).sum() / max(1, (a | b).sum()))


if __name__ == "__main__":
    main()
