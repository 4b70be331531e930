"""Speed of the metrics on data of COCO's size, synthetic and seeded.

    python -m benchmarks.evals [--images 5000] [--detections 100]

Goals for 5,000 images of 480 x 640 with 100 detections each: instance AP below 30 s,
panoptic quality below 60 s (the time inside the metric; making the data is not counted).
"""

import argparse
import json
import time

import numpy as np
from pycocotools import mask as rle_codec

from semsam_jax.evals.instance_ap import InstanceEvaluator, InstanceSet
from semsam_jax.evals.panoptic import PanopticEvaluator, PanopticSegments

SIZE = (480, 640)
NUM_CLASSES = 80
TRUTHS = 7  # COCO has 7.3 instances per image


def random_ellipse(rng: np.random.Generator) -> dict:
    """RLE of an ellipse, drawn as a polygon (as COCO's own annotations are)."""
    centre = rng.uniform((0, 0), SIZE[::-1])
    radius = rng.lognormal(3.5, 0.8, 2)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    outline = centre + radius * np.stack([np.cos(angle), np.sin(angle)], 1)
    outline = np.clip(outline, 0, np.asarray(SIZE[::-1]) - 1)
    return rle_codec.frPyObjects([outline.ravel().tolist()], *SIZE)[0]


def time_instance_ap(num_images: int, num_detections: int, rng: np.random.Generator) -> dict:
    shapes = [random_ellipse(rng) for _ in range(2000)]
    evaluator = InstanceEvaluator(NUM_CLASSES)
    spent = 0.0
    for number in range(num_images):
        truth = rng.integers(len(shapes), size=TRUTHS)
        found = np.concatenate([truth, rng.integers(len(shapes), size=num_detections - TRUTHS)])
        start = time.perf_counter()
        evaluator.process(
            f"{number:06d}",
            SIZE,
            InstanceSet(truth % NUM_CLASSES, rles=[shapes[i] for i in truth]),
            InstanceSet(
                found % NUM_CLASSES,
                rles=[shapes[i] for i in found],
                scores=rng.uniform(size=len(found)),
            ),
        )
        spent += time.perf_counter() - start
    start = time.perf_counter()
    result = evaluator.result()
    return {"seconds": spent + time.perf_counter() - start, "ap50": result.ap50}


def time_panoptic(num_images: int, rng: np.random.Generator) -> dict:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    is_thing = np.arange(133) < NUM_CLASSES
    evaluator = PanopticEvaluator(is_thing)
    pairs = []
    for _ in range(20):
        truth = (rows // 120) * 5 + columns // 128 + 1
        shifted = np.roll(truth, rng.integers(-40, 40, 2), axis=(0, 1))
        ids = rng.choice(2**24 - 1, 20, replace=False) + 1  # as COCO's colour-coded PNGs
        classes = rng.integers(len(is_thing), size=20)
        true_classes = dict(zip(ids.tolist(), classes.tolist(), strict=True))
        found_classes = dict(zip(range(1, 21), classes.tolist(), strict=True))
        pairs.append(
            (
                PanopticSegments(ids[truth - 1], true_classes),
                PanopticSegments(shifted, found_classes),
            )
        )
    start = time.perf_counter()
    for number in range(num_images):
        evaluator.process(*pairs[number % len(pairs)])
    result = evaluator.result()
    return {"seconds": time.perf_counter() - start, "pq": result.all["pq"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    report = {
        "images": args.images,
        "detections": args.detections,
        "instance_ap": time_instance_ap(args.images, args.detections, rng),
        "panoptic": time_panoptic(args.images, rng),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
