"""Runs the programs of `semsam export`; imports none of the model code."""

import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import export
from jaxtyping import Float, Int, UInt8

from semsam_jax.core.errors import CheckpointError, PromptError
from semsam_jax.core.old_names import upgrade_meta
from semsam_jax.inference.export import ONNX, PREDICTED
from semsam_jax.inference.guided import (
    BOX_DETAIL,
    GuidedUpsampler,
    inside_box,
    plain_where_better,
)
from semsam_jax.inference.images import ImageLike, load_image
from semsam_jax.inference.preprocess import Frame, fit_image
from semsam_jax.inference.requests import (
    Request,
    check_request,
    split_batch,
    warn_of_fractions,
)
from semsam_jax.inference.upsample import upsample_masks


@dataclasses.dataclass(frozen=True)
class ExportedMasks:
    """Answer to a list of prompts, at the image's size.

    Attributes:
        masks: bool [p, k, h, w], k in the order of levels 1..6.
        scores: predicted IoU, float32 [p, k].
    """

    masks: np.ndarray
    scores: np.ndarray


class ExportedModel:
    """A folder of exported programs.

    Args:
        folder: written by `semsam export`.

    Raises:
        CheckpointError: not such a folder, or its programs do not run on this platform.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        try:
            self.manifest = upgrade_meta(json.loads((self.folder / "manifest.json").read_text()))
            platforms = self.manifest["platforms"]
            self.params = {}
            if platforms != [ONNX]:
                with np.load(self.folder / "params.npz") as stored:
                    self.params = jax.device_put(_unflatten(dict(stored)))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder}: not a folder written by `semsam export` ({error})."
            ) from error
        self.platform = ONNX if platforms == [ONNX] else _platform()
        if self.platform not in platforms:
            raise CheckpointError(
                f"{folder}: exported for {', '.join(platforms)}, this machine is {self.platform}; "
                f"export again with --platforms {self.platform}."
            )
        if self.platform == ONNX and importlib.util.find_spec("onnxruntime") is None:
            raise CheckpointError(
                f"{folder}: onnxruntime is not installed; run `pip install 'semsam-jax[onnx]'`."
            )
        self._programs: dict[str, Callable[..., dict]] = {}

    @property
    def canvases(self) -> list[tuple[int, int]]:
        """Canvas sizes (height, width) that were exported."""
        return list(dict.fromkeys(tuple(p["canvas_hw"]) for p in self.manifest["programs"]))

    def encode(self, canvas: UInt8[np.ndarray, "h w 3"], size_hw: tuple[int, int]) -> dict:
        """Returns the pyramid of one canvas, as a dict of device arrays."""
        name = f"encode_{canvas.shape[0]}x{canvas.shape[1]}"
        return self._call(name, canvas[None], np.array([size_hw], np.int32))

    def decode(
        self, pyramid: dict, boxes: Float[np.ndarray, "p 4"], type_index: Int[np.ndarray, " p"]
    ) -> dict:
        """Answers any number of prompts; NumPy arrays [p, k, ...]."""
        height, width = (4 * n for n in pyramid["mask_features"].shape[1:3])
        counts = sorted(
            p["num_prompts"]
            for p in self.manifest["programs"]
            if p["platform"] == self.platform
            and "num_prompts" in p
            and p["canvas_hw"] == [height, width]
        )
        step = next((n for n in counts if n >= len(boxes)), counts[-1])
        answers = []
        for start in range(0, len(boxes), step):
            rows = np.minimum(np.arange(start, start + step), len(boxes) - 1)
            name = f"decode_{height}x{width}_p{step}"
            answer = self._call(
                name, pyramid, boxes[rows][None], type_index[rows][None].astype(np.int32)
            )
            num = min(step, len(boxes) - start)
            answers.append(jax.tree.map(lambda x: np.asarray(x)[0, :num], answer))  # noqa: B023
        return jax.tree.map(lambda *x: np.concatenate(x), *answers)

    def frame(self, image_hw: tuple[int, int]) -> Frame:
        """Fits an image into the exported canvas that shows it largest."""
        frames = []
        for canvas in self.canvases:
            scale = min(canvas[0] / image_hw[0], canvas[1] / image_hw[1])
            resized = tuple(max(1, min(round(image_hw[i] * scale), canvas[i])) for i in (0, 1))
            frames.append(Frame(image_hw, resized, canvas, self.manifest["prompt_preset"]))
        return max(frames, key=lambda frame: frame.resized_hw[0] * frame.resized_hw[1])

    def segment(
        self, image: ImageLike, point_coords: object = None, boxes: object = None
    ) -> ExportedMasks:
        """Masks of every level for every click and every box, each an object of its own.

        Args:
            image: path, PIL image or array, see `load_image`.
            point_coords: clicks (x, y) in pixels of the image, [c, 2].
            boxes: x0, y0, x1, y1 in pixels of the image, [b, 4].

        Returns:
            The answers to the clicks, then those to the boxes.

        Raises:
            PromptError: neither, or one that is not in the image.
        """
        pixels = load_image(image)
        points, corners = _prompts(point_coords, boxes, pixels.shape[:2])
        frame = self.frame(pixels.shape[:2])
        pyramid = self.encode(fit_image(pixels, frame), frame.resized_hw)
        prompts = np.concatenate([frame.click_boxes(points), frame.box_prompts(corners)])
        types = np.repeat([0, frame.box_type()], [len(points), len(corners)])
        answer = self.decode(pyramid, prompts, types)
        order = np.array(self.manifest["level_order"])
        logits = answer["mask_logits"][:, order]
        flat = logits.reshape(-1, *logits.shape[2:])
        if self.manifest.get("guided_upsampling"):
            guide, first = GuidedUpsampler(pixels, frame), len(points) * len(order)
            parts = [guide.masks(flat[:first]), guide.masks(flat[first:], BOX_DETAIL)]
            for row, point in enumerate(points):
                own = slice(row * len(order), (row + 1) * len(order))
                click = (point[None], np.ones(1, bool))
                plain_where_better(parts[0][own], flat[own], frame, *click)
            margin = self.manifest.get("box_margin")  # exports of earlier versions have none
            if margin:
                for row, corner in enumerate(corners):
                    own = slice(row * len(order), (row + 1) * len(order))
                    parts[1][own] &= inside_box(corner, margin, frame.image_hw)
            masks = np.concatenate(parts)
        else:
            masks = upsample_masks(flat, frame, frame.image_hw)
        return ExportedMasks(
            masks.reshape(*logits.shape[:2], *frame.image_hw), answer["pred_ious"][:, order]
        )

    def _call(self, name: str, *args) -> dict:
        if name not in self._programs:
            ending = "onnx" if self.platform == ONNX else "jaxexport"
            file = self.folder / self.platform / f"{name}.{ending}"
            if not file.exists():
                raise CheckpointError(
                    f"{file}: this shape was not exported; the canvases are {self.canvases}."
                )
            self._programs[name] = self._onnx(file) if self.platform == ONNX else self._jax(file)
        return self._programs[name](*args)

    def _jax(self, file: Path) -> Callable[..., dict]:
        program = jax.jit(export.deserialize(bytearray(file.read_bytes())).call)
        return lambda *args: program(self.params, *args)

    def _onnx(self, file: Path) -> Callable[..., dict]:
        import onnxruntime

        session = onnxruntime.InferenceSession(
            file, providers=onnxruntime.get_available_providers()
        )
        names = [one.name for one in session.get_inputs()]
        results = [one.name.removeprefix(PREDICTED) for one in session.get_outputs()]

        def run(*args) -> dict:
            arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(args)]
            return dict(
                zip(results, session.run(None, dict(zip(names, arrays, strict=True))), strict=True)
            )

        return run


def _prompts(
    point_coords: object, boxes: object, image_hw: tuple[int, int]
) -> tuple[Float[np.ndarray, "c 2"], Float[np.ndarray, "b 4"]]:
    """Clicks and boxes, checked."""
    if point_coords is None and boxes is None:
        raise PromptError("prompt: got neither clicks nor boxes; give at least one of them.")
    requests = [] if point_coords is None else [Request(point_coords)]
    if boxes is not None:
        requests += split_batch(Request(box=boxes)) or [Request(box=boxes)]
    checked = [check_request(request, image_hw) for request in requests]
    for check in checked:
        warn_of_fractions(check, image_hw)
    points = np.concatenate([check.points for check in checked])
    return points, np.concatenate([check.boxes for check in checked])


def _platform() -> str:
    """This machine's platform, as `jax.export` names it."""
    if jax.default_backend() != "gpu":
        return jax.default_backend()
    version = jax.devices()[0].client.platform_version
    return "rocm" if "rocm" in version.lower() else "cuda"


def _unflatten(flat: dict) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
