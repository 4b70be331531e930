"""Speed of the metrics on data of COCO's size, synthetic and seeded.

    python -m benchmarks.evals [--images 5000] [--detections 100]
    python -m benchmarks.evals --preset swin_t --suite one_click [--num-images 3]

Goals for 5,000 images of 480 x 640 with 100 detections each: instance AP below 30 s,
panoptic quality below 60 s (the time inside the metric; making the data is not counted).
With `--preset`, whole evaluations are timed instead: how much of one-click and of generic
evaluation is the network, and how much is everything else (goal: at most a tenth), in CPU
seconds, which other programs on the machine hardly change. The network's share is the time of
its own program alone: image and prompts to mask logits at stride 4 for clicks, to mask
embeddings for the generic branch. There the class of every pixel and the masks at the image's
size, which whoever segments without scoring draws too, are timed with the network as well.
"""

import argparse
import dataclasses
import json
import time

import cv2
import jax
import numpy as np
from pycocotools import mask as rle_codec

from semsam_jax.core import rle
from semsam_jax.core.compilation import use_compilation_cache
from semsam_jax.core.structs import Prompts, TextTable
from semsam_jax.evals.generic import evaluate_generic
from semsam_jax.evals.generic_runner import GenericRunner
from semsam_jax.evals.instance_ap import InstanceEvaluator, InstanceSet
from semsam_jax.evals.one_click import evaluate_one_click
from semsam_jax.evals.panoptic import PanopticEvaluator, PanopticSegments
from semsam_jax.evals.part_ap import ClassList
from semsam_jax.evals.samples import EvalSample
from semsam_jax.models import presets
from semsam_jax.models.heads import mask_logits
from semsam_jax.models.semantic_sam import SemanticSAM, init_params

SIZE = (480, 640)
NUM_CLASSES = 80
TRUTHS = 7  # COCO has 7.3 instances per image


def random_ellipse(rng: np.random.Generator) -> dict:
    """COCO RLE of an ellipse in `SIZE`, drawn as a polygon (as COCO's own annotations are)."""
    centre = rng.uniform((0, 0), SIZE[::-1])
    radius = rng.lognormal(3.5, 0.8, 2)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    outline = centre + radius * np.stack([np.cos(angle), np.sin(angle)], 1)
    outline = np.clip(outline, 0, np.asarray(SIZE[::-1]) - 1)
    return rle_codec.frPyObjects([outline.ravel().tolist()], *SIZE)[0]


def time_instance_ap(num_images: int, num_detections: int, rng: np.random.Generator) -> dict:
    """Times instance AP on random ellipses.

    Args:
        num_images: images of `SIZE`, with `TRUTHS` objects each.
        num_detections: detections of an image, the true ones among them.
        rng: of shapes, classes and scores.

    Returns:
        `seconds` inside the metric, `cpu_seconds`, and `ap50` (a fraction).
    """
    shapes = [random_ellipse(rng) for _ in range(2000)]
    evaluator = InstanceEvaluator(NUM_CLASSES)
    spent, cpu = 0.0, time.process_time()
    making = 0.0
    for number in range(num_images):
        before = time.process_time()
        truth = rng.integers(len(shapes), size=TRUTHS)
        found = np.concatenate([truth, rng.integers(len(shapes), size=num_detections - TRUTHS)])
        making += time.process_time() - before
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
    seconds = spent + time.perf_counter() - start
    cpu_sec = time.process_time() - cpu - making
    return {"seconds": seconds, "cpu_seconds": cpu_sec, "ap50": result.ap50}


def time_panoptic(num_images: int, rng: np.random.Generator) -> dict:
    """Times panoptic quality on shifted rectangles, 20 segments an image.

    Args:
        num_images: images of `SIZE`.
        rng: of ids, classes and shifts.

    Returns:
        `seconds` inside the metric, `cpu_seconds`, and `pq` (a fraction).
    """
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
    start, cpu = time.perf_counter(), time.process_time()
    for number in range(num_images):
        evaluator.process(*pairs[number % len(pairs)])
    result = evaluator.result()
    seconds, cpu_sec = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu_sec, "pq": result.all["pq"]}


def random_samples(num_images: int, rng: np.random.Generator) -> list[EvalSample]:
    """Images of 480 x 640 at short side 800, with 20 masks each, in the published frame."""
    height, width = 800, 1067
    samples = []
    for number in range(num_images):
        image = np.zeros((800, 1088, 3), np.uint8)
        image[:height, :width] = rng.integers(0, 256, (height, width, 3))
        small = [rle.decode(random_ellipse(rng)).astype(np.uint8) for _ in range(20)]
        samples.append(
            EvalSample(
                image=image,
                size_hw=(height, width),
                masks=[cv2.resize(mask, (width, height)) > 0 for mask in small],
                image_id=str(number),
                object_ids=rng.integers(0, 133, 20),
                scale=800 / 480,
            )
        )
    return samples


def in_image_pixels(sample: EvalSample) -> EvalSample:
    """The same image with its masks in the stored image's frame."""
    masks = [cv2.resize(mask.astype(np.uint8), SIZE[::-1]) > 0 for mask in sample.masks]
    return dataclasses.replace(sample, masks=masks, truth_hw=SIZE)


def random_params(model: SemanticSAM, rng: np.random.Generator) -> dict:
    """Small random float32 parameters of the model's shapes; compiles no initialisation."""
    shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    return jax.tree.map(lambda x: 0.02 * rng.normal(size=x.shape).astype(np.float32), shapes)


def time_evaluation(preset: str, suite: str, num_images: int, rng: np.random.Generator) -> dict:
    """Times a whole evaluation and the network alone; see the top of this file.

    Args:
        preset: sizes of the model; its weights are random.
        suite: `one_click` or `generic`.
        num_images: measured images.
        rng: of weights and images.

    Returns:
        Wall and CPU seconds an image of both, and the share of what is not the network.
    """
    config = presets.PRESETS[preset]
    model = SemanticSAM(config)
    params = jax.device_put(random_params(model, rng))
    samples = random_samples(num_images + 1, rng)
    size_hw = np.asarray([samples[0].size_hw], np.int32)

    @jax.jit
    def click_network(params, image):
        pyramid = model.apply({"params": params}, image, size_hw, method="encode_image")
        prompts = Prompts(np.full((1, 20, 4), 0.5, np.float32), np.zeros((1, 20), np.int32), valid)
        answers = model.apply({"params": params}, pyramid, prompts, method="decode_prompts")
        return mask_logits(answers.mask_embed[-1], pyramid.mask_features), answers.pred_ious

    valid = np.ones((1, 20), bool)
    classes = ClassList(np.arange(133), np.arange(133) < NUM_CLASSES)
    rows = rng.normal(size=(133, config.decoder.text_dim)).astype(np.float32)
    text = TextTable(rows / np.linalg.norm(rows, axis=1, keepdims=True), rows[:0])

    @jax.jit
    def generic_network(params, image):
        pyramid = model.apply({"params": params}, image, size_hw, method="encode_image")
        answers = model.apply({"params": params}, pyramid, text, method="decode_generic")
        return jax.tree.map(lambda x: x[-1], answers.layers), pyramid.mask_features

    def per_image(work):
        """Wall and CPU seconds per image of a function of images."""
        work(samples[:1])  # compiles
        start = np.asarray([time.perf_counter(), time.process_time()])
        work(samples[1:])
        return (np.asarray([time.perf_counter(), time.process_time()]) - start) / num_images

    def clicks(images):
        evaluate_one_click(model, params, images, prompts_per_call=20)

    def generic(images):
        evaluate_generic(model, params, text, map(in_image_pixels, images), classes)

    network, evaluate = {
        "one_click": (click_network, clicks),
        "generic": (generic_network, generic),
    }[suite]

    def run_network(images):
        for sample in images:
            jax.block_until_ready(network(params, sample.image[None]))

    whole, alone = per_image(evaluate), per_image(run_network)
    report = {
        "suite": suite,
        "sec_per_image": whole[0],
        "network_sec_per_image": alone[0],
        "cpu_sec_per_image": whole[1],
        "network_cpu_sec_per_image": alone[1],
        "share_of_the_rest_in_cpu_time": 1 - alone[1] / whole[1],
    }
    if suite == "generic":
        runner = GenericRunner(model, params, text)

        def answer(images):
            for sample in images:
                runner.answer([in_image_pixels(sample)])

        drawn = per_image(answer)[1]
        report |= {
            "network_and_drawing_cpu_sec_per_image": drawn,
            "share_of_the_metric_in_cpu_time": 1 - drawn / whole[1],
        }
    return report


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--preset", choices=sorted(presets.PRESETS))
    parser.add_argument("--suite", choices=("one_click", "generic"), default="one_click")
    parser.add_argument("--num-images", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    if args.preset:
        use_compilation_cache()
        report = time_evaluation(args.preset, args.suite, args.num_images, rng)
        print(json.dumps(report, indent=1))
        return
    report = {
        "images": args.images,
        "detections": args.detections,
        "instance_ap": time_instance_ap(args.images, args.detections, rng),
        "panoptic": time_panoptic(args.images, rng),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
