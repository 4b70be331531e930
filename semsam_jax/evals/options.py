"""Options of `evaluate` and `configs/eval_only.py`."""

import dataclasses

from semsam_jax.core.errors import ConfigError

SUITE_NAMES = (
    "one_click",
    "levels",
    "box",
    "granularity",
    "interactive",
    "continuous",
    "generic",
    "names",
    "part",
    "everything",
    "proposals",
    "otq",
    "baselines",
)
PROTOCOLS = ("square", "released_v1", "original_size")
VIEWS = ("any", "object", "part")
CANVASES = ("square", "tight")
CANVAS_MULTIPLE = 32
_ON_A_GRID = ("everything", "proposals", "otq")
_NOT_USED_BY = {
    "view": ("--data.view", ("generic", "part", "everything", "otq")),
    "points_per_side": ("--points-per-side", tuple({*SUITE_NAMES} - {*_ON_A_GRID})),
    "protocol": ("--protocol", ("otq",)),
    "image_size": ("--data.image-size", ("otq",)),
    "short_side": ("--data.short-side", ("otq",)),
    "canvas": ("--data.canvas", ("otq",)),
}
"""Options with their flags and the suites that they do not change."""
_OF_FOLDERS = ("checkpoint", "folder", "out", "split", "limit", "image_size")
"""What the evaluation of a folder of sources uses."""


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """One evaluation of one checkpoint on one dataset; "" and 0 take the default.

    Attributes:
        checkpoint: folder of a model or training run, or the name of a model (`convert.zoo`); the
            packaged model by default.
        folder: holds one folder per source, or is one; scores clicks and boxes on all of them
            instead of the suites.
        suites: what to measure, some of `SUITE_NAMES`.
        out: folder for tables and pictures; CHECKPOINT/evaluation/DATASET by default.
        root: holds one folder per dataset; the embedded sample by default.
        dataset, split: which images.
        limit: number of images, all by default.
        view: which masks are prompted: any, object or part.
        protocol: frame of the scores. `square`: the square canvas of training. `released_v1`:
            short side 800, long side at most 1333, tight canvas, scores at that size.
            `original_size`: the checkpoint's own canvas, scores of prompts in the stored
            image's pixels. By default released_v1 for released weights, else square.
        image_size: side of the canvas, a multiple of 32.
        short_side: resize the short side to this, as far as the long side fits.
        canvas: square, or tight (padded to multiples of 32 only).
        prompts_per_call: prompts of an image decoded together; changes no result.
        images_per_device: images that a device works on at a time; changes no result.
        points_per_side: clicks per side of the grid of the suites `proposals`, `everything` and
            `otq`.
        write_levels: write the measured order and sizes of levels into the checkpoint's meta.
        write_masks: write the thresholds of masks that suit it.
        write_names: write the thresholds of names that suit it, where it names the dataset.
        write_panoptic: write whether the generic branch or named masks of clicks label whole images
            with the higher PQ; both suites, `generic` and `everything`, must be measured.
    """

    checkpoint: str = ""
    folder: str = ""
    suites: tuple[str, ...] = ("one_click", "baselines")
    out: str = ""
    root: str = ""
    dataset: str = "coco"
    split: str = "val"
    limit: int = 0
    view: str = "any"
    protocol: str = ""
    image_size: int = 0
    short_side: int = 0
    canvas: str = ""
    prompts_per_call: int = 16
    images_per_device: int = 1
    points_per_side: int = 32
    write_levels: bool = False
    write_masks: bool = False
    write_names: bool = False
    write_panoptic: bool = False

    def __post_init__(self):
        """Checks everything that needs no data and no checkpoint."""
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        idle = [name for name in changed if name not in _OF_FOLDERS]
        if self.folder and idle:
            raise ConfigError(
                f"evaluate folder {self.folder}: {', '.join(idle)}: no effect on a folder of "
                f"sources, which has measures of its own; leave out one or the other."
            )
        unknown = [name for name in self.suites if name not in SUITE_NAMES]
        if unknown or not self.suites:
            raise ConfigError(
                f"--suite: got {', '.join(unknown) or 'nothing'}; expected one or more of "
                f"{', '.join(SUITE_NAMES)}."
            )
        if self.write_panoptic and not {"generic", "everything"} <= {*self.suites}:
            raise ConfigError(
                f"write_panoptic: compares the suites generic and everything; got "
                f"{', '.join(self.suites)}."
            )
        for name, (flag, idle_suites) in _NOT_USED_BY.items():
            if name in changed and {*self.suites} <= {*idle_suites}:
                users = ", ".join(suite for suite in SUITE_NAMES if suite not in idle_suites)
                raise ConfigError(
                    f"{flag} {getattr(self, name)}: no effect on --suite "
                    f"{','.join(self.suites)}; leave it out, or measure one of {users}."
                )
        for flag, value, allowed in (
            ("--data.view", self.view, VIEWS),
            ("--protocol", self.protocol, ("", *PROTOCOLS)),
            ("--data.canvas", self.canvas, ("", *CANVASES)),
        ):
            if value not in allowed:
                raise ConfigError(f"{flag} {value!r}: expected {', '.join(filter(None, allowed))}.")
        for flag, value, least in (
            ("--data.limit", self.limit, 0),
            ("--data.image-size", self.image_size, 0),
            ("--data.short-side", self.short_side, 0),
            ("--prompts-per-call", self.prompts_per_call, 1),
            ("--images-per-device", self.images_per_device, 1),
            ("--points-per-side", self.points_per_side, 1),
        ):
            if value < least:
                raise ConfigError(f"{flag} {value}: expected at least {least}.")
        if self.image_size % CANVAS_MULTIPLE:
            rounded = -(-self.image_size // CANVAS_MULTIPLE) * CANVAS_MULTIPLE
            raise ConfigError(
                f"--data.image-size {self.image_size}: expected a multiple of {CANVAS_MULTIPLE}, "
                f"such as {rounded}."
            )


def parse_suites(text: str) -> tuple[str, ...]:
    """Splits the value of --suite."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
