"""Feeds every public function wrong types and shapes; run by test_public_errors.

A process of its own, because the tests' type checker would answer instead of the package.
Prints one line for each call that ended with anything but a result or a SemSamError.
"""

import decimal
import io
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import semsam_jax
from semsam_jax import MaskGenerator, Predictor, Request, SemSamError, load_model
from semsam_jax.inference import convert_results
from semsam_jax.inference.labels import label_set, parse_labels


def _cut_short():
    """A PIL image whose file ends early, which shows when its pixels are asked for."""
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "JPEG")
    return Image.open(io.BytesIO(content.getvalue()[:400]))


def _closed():
    """A PIL image whose file was closed before its pixels were read."""
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "PNG")
    image = Image.open(content)
    image.close()
    return image


class _Hostile:
    """Raises whatever is asked of it."""

    def _raise(self, *_):
        raise RuntimeError("no value")

    __array__ = __len__ = __iter__ = __float__ = __index__ = __bool__ = __getitem__ = _raise


def _endless():
    """A list that holds itself."""
    made = [1]
    made.append(made)
    return made


WRONG = {
    "none": None,
    "text": "wrong",
    "bytes": b"wrong",
    "number": -7,
    "huge": 10**400,
    "fraction": 0.37,
    "nan": float("nan"),
    "infinity": float("inf"),
    "flag": True,
    "complex": 1j,
    "empty list": [],
    "list": [1, "a", None],
    "ragged": [[1, 2], [3]],
    "nested": [[[[1.0, 2.0]]]],
    "dict": {"a": 1},
    "dict of numbers": {1: 2},
    "set": {1, 2},
    "object": object(),
    "type": int,
    "function": len,
    "generator": (x for x in ()),
    "array": np.zeros((3, 5)),
    "empty array": np.zeros((0, 4)),
    "text array": np.array(["a", "b"]),
    "object array": np.array([None, {}], object),
    "nan array": np.full((2, 2), np.nan),
    "deep array": np.zeros((1, 2, 3, 4)),
    "path": Path("/nowhere/at/all"),
    "folder": Path("/"),
    "device": "/dev/null",
    "null": "a\0b",
    "surrogate": "\ud800",
    "long text": "a" * 5000,
    "masked array": np.ma.masked_all((2, 2)),
    "dates": np.array(["2020-01-01"], "datetime64[D]"),
    "records": np.zeros(2, [("x", "f4")]),
    "flags": np.zeros((2, 2), bool),
    "complex array": np.ones((1, 2), complex),
    "decimal": decimal.Decimal("NaN"),
    "slice": slice(None),
    "ellipsis": ...,
    "range": range(2**40),
    "endless list": _endless(),
    "hostile": _Hostile(),
    "image cut short": _cut_short(),
    "closed image": _closed(),
    "image of labels": Image.new("LAB", (8, 8)),
}

MASK_GENERATOR = """points_per_side points_per_batch pred_iou_thresh stability_score_thresh
    stability_score_offset box_nms_thresh level labels crop_n_layers crop_nms_thresh
    crop_overlap_ratio crop_n_points_downscale_factor min_mask_region_area output_mode size
    granularity"""


def calls(model, image):
    """Name and function of one argument for every argument of every public function."""
    predictor = Predictor(model, size=64)
    predictor.set_image(image)
    point = {"point_coords": [[20, 20]]}
    quick = {"points_per_side": 1, "size": 64}
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:20] = True
    record = {"segmentation": mask, "score": 0.5, "object": {"name": "dog", "score": 0.5}}
    answer = predictor.predict(**point)
    records = MaskGenerator(model, pred_iou_thresh=-9, stability_score_thresh=0, **quick)
    records = records.generate(image)
    yield "load_model.path", lambda x: load_model(x) if x is not None else None
    for name in ("model_config", "dtype", "prompt_preset", "pad_to_multiple"):
        yield f"load_model.{name}", lambda x, n=name: load_model(sys.argv[1], **{n: x})
    yield "Predictor.model", Predictor
    yield "Predictor.size", lambda x: Predictor(model, size=x)
    yield "set_image", lambda x: Predictor(model, size=64).set_image(x)
    yield "set_image.image_format", lambda x: Predictor(model).set_image(image, x)
    for name in ("point_coords", "point_labels", "box", "mask_input"):
        yield f"predict.{name}", lambda x, n=name: predictor.predict(**{n: x})
        yield f"predict.{name} beside", lambda x, n=name: predictor.predict(**(point | {n: x}))
    for name in ("level", "area", "granularity", "labels", "multimask_output", "return_logits"):
        yield f"predict.{name}", lambda x, n=name: predictor.predict(**point, **{n: x})
    yield "predict_many", predictor.predict_many
    yield "predict_many of one", lambda x: predictor.predict_many([x])
    for name in (
        "point_coords",
        "point_labels",
        "box",
        "level",
        "area",
        "mask_input",
        "granularity",
    ):
        yield f"Request.{name}", lambda x, n=name: predictor.predict_many([Request(**{n: x})])
    yield "predict_batch.images", lambda x: predictor.predict_batch(x, [[Request(**point)]])
    yield "predict_batch.image", lambda x: predictor.predict_batch([x], [[Request(**point)]])
    yield "predict_batch.requests", lambda x: predictor.predict_batch([image], x)
    yield "predict_batch.request", lambda x: predictor.predict_batch([image], [x])
    yield (
        "predict_batch.batch_size",
        lambda x: predictor.predict_batch([image], [[Request(**point)]], batch_size=x),
    )
    for name in MASK_GENERATOR.split():
        yield f"MaskGenerator.{name}", lambda x, n=name: MaskGenerator(model, **(quick | {n: x}))
    yield (
        "MaskGenerator.isolate",
        lambda x: MaskGenerator(model, isolate=x, **quick).generate(image),
    )
    yield "MaskGenerator.model", MaskGenerator
    yield "generate", MaskGenerator(model, **quick).generate
    yield "parse_labels", parse_labels
    yield "label_set", lambda x: label_set(model, x)
    for name in ("to_coco", "to_labelme", "to_yolo", "to_supervision", "to_label_map"):
        make = getattr(convert_results, name)
        extra = {"to_coco": ("a.jpg", 20, 30), "to_labelme": ("a.jpg", 20, 30)}
        extra |= {"to_yolo": (20, 30), "to_label_map": (20, 30)}
        more = extra.get(name, ())
        yield f"{name}.records", lambda x, m=make, e=more: m(x, *e)
        yield f"{name}.record", lambda x, m=make, e=more: m([x], *e)
        for key in ("segmentation", "score", "object", "part", "level"):
            yield (
                f"{name}.{key}",
                lambda x, m=make, e=more, k=key: m([record | {k: x}], *e),
            )
    for result, kind in ((answer, "Segments"), (records, "Records")):
        yield f"{kind}.index", lambda x, r=result: r[x]
        yield f"{kind}.plot", lambda x, r=result: r.plot(x)
        yield f"{kind}.to_yolo", lambda x, r=result: r.to_yolo(x)
        yield f"{kind}.to_coco", lambda x, r=result: r.to_coco(x)
        yield f"{kind}.to_labelme", lambda x, r=result: r.to_labelme(x)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "a"
        yield "save.folder", lambda x: answer.save([x])
        yield "save.image", lambda x: answer.save(out / str(len(os.listdir(folder))), x)


def main() -> int:
    """Calls everything; returns the number of surprises, at most 1."""
    jax.config.update("jax_disable_most_optimizations", True)
    warnings.simplefilter("ignore")
    os.chdir(tempfile.mkdtemp())
    model = load_model(sys.argv[1])
    model.meta["class_heads_trained"] = True
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    count = surprises = 0
    for name, call in calls(model, image):
        for kind, value in WRONG.items():
            count += 1
            try:
                call(value)
            except SemSamError as error:
                message = str(error)
                if len(message) > 700:
                    surprises += 1
                    print(f"{name}({kind}): a message of {len(message)} letters")
            except Exception as error:
                surprises += 1
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place.filename).name}:{place.lineno}"
                print(f"{name}({kind}): {type(error).__name__}: {str(error)[:100]} at {where}")
    print(f"{count} calls, {surprises} surprises ({semsam_jax.__version__})")
    return int(surprises > 0)


if __name__ == "__main__":
    sys.exit(main())
