"""What a user gets on several datasets at once: `semsam evaluate FOLDER`.

Each subfolder of FOLDER is one source, in any layout of a custom dataset (`data_pipelines`); a
FOLDER that is such a dataset itself is the only one. Every mask is asked for twice, through
`Predictor`, at the image's own size: by a click at its deepest point and by its tight box. All
figures are means over the masks of a source; the mean over sources weighs each source alike, so
that a large one does not decide. Its standard error comes from resampling images within their
source (bootstrap, arXiv 1411.5279 and earlier).
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines import decode
from data_pipelines.schema import RawExample
from data_pipelines.sources.single_dataset import has_split
from semsam_jax.core import rle
from semsam_jax.core.errors import DataError
from semsam_jax.evals import report
from semsam_jax.evals.box_prompt import tight_box
from semsam_jax.evals.clicks import centre_click
from semsam_jax.evals.dataset_samples import EvalDataset, EvalFrame, open_folder
from semsam_jax.evals.levels import kendall_tau_descending
from semsam_jax.inference import files
from semsam_jax.inference.loading import LoadedModel
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.requests import Request

SIZES = (0.003, 0.01, 0.03, 0.1, 1.0)
"""Upper ends of the size classes, as shares of the image."""

_MIN_AREA = 64
_PARTS = ("train", "val", "valid", "validation", "test", "annotations", "images", "labels", "data")
"""Folders of one dataset, which look like datasets themselves."""
_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class MaskScores:
    """One row per mask of one source; all columns have the same length N.

    Attributes:
        image: int64 [N], number of the image within its source.
        click_iou: float64 [N, k], IoU of each level's mask for a click, level 1 first.
        predicted_iou: float64 [N, k], what the model thinks of them.
        predicted_area: float64 [N, k], their areas, fractions of the image.
        box_iou: float64 [N, k], the same masks for the tight box.
        box_predicted: float64 [N, k], what the model thinks of those.
        fill: float64 [N], IoU of the filled box itself.
        area: float64 [N], area of the mask, fraction of the image.
    """

    image: np.ndarray
    click_iou: np.ndarray
    predicted_iou: np.ndarray
    predicted_area: np.ndarray
    box_iou: np.ndarray
    box_predicted: np.ndarray
    fill: np.ndarray
    area: np.ndarray

    def __len__(self) -> int:
        """Number of masks."""
        return len(self.image)

    @property
    def chosen(self) -> np.ndarray:
        """IoU of the mask with the highest predicted IoU, float64 [N]."""
        return _picked(self.click_iou, self.predicted_iou)

    @property
    def oracle(self) -> np.ndarray:
        """IoU of the best mask of the click, float64 [N]."""
        return self.click_iou.max(1)

    @property
    def box(self) -> np.ndarray:
        """IoU of the mask that is chosen for the box, float64 [N]."""
        return _picked(self.box_iou, self.box_predicted)


def source_folders(folder: str | Path, split: str) -> list[Path]:
    """The subfolders that hold a dataset, by name, or the folder itself if it is one.

    Raises:
        DataError: there is no such folder, or none in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"evaluate {folder}: no such folder.")
    found = [sub for sub in sorted(folder.iterdir()) if sub.is_dir() and has_split(sub, split)]
    if all(sub.name in _PARTS for sub in found) and has_split(folder, split):
        return [folder.resolve()]
    if not found:
        raise DataError(
            f"evaluate {folder}: none of its folders holds a dataset with the split {split!r}; "
            "expected one folder per source in a layout of docs/finetune.md, such as "
            f"{folder}/NAME/annotations/{split}.json with {folder}/NAME/images/."
        )
    return found


def score_sources(
    model: LoadedModel,
    folder: str | Path,
    split: str = "val",
    *,
    limit: int | None = None,
    size: int | None = None,
    show_progress: bool = False,
) -> tuple[dict[str, MaskScores], dict[str, list[str]]]:
    """Scores the masks of every source of a folder.

    Args:
        model: the checkpoint.
        folder: holds one folder per source, or is one.
        split: which part of each.
        limit: images of a source, all by default.
        size: side of the square that images are resized to, the checkpoint's own by default.
        show_progress: draw a bar of the images.

    Returns:
        Scores by source, and notes on what was not used of each source, and on folders without
        the split, which are none.

    Raises:
        DataError: nothing to score.
    """
    predictor = Predictor(model, size=size)
    scores, notes = {}, {}
    # Masks are scored in the stored image's pixels; the canvas is the predictor's affair.
    frame = EvalFrame(image_size=32, in_image_frame=True)
    folders = source_folders(folder, split)
    for sub in folders:
        dataset, _ = open_folder(sub, split, frame, limit).surveyed()
        rows: list[tuple] = []
        num_small = num_pseudo = 0
        for number, example in enumerate(_progress(dataset, show_progress)):
            found = [i for i in example.instances if i.rle is not None]
            masks = [i.rle for i in found if not i.is_pseudo]
            num_pseudo += len(found) - len(masks)
            truths = [mask for mask in map(rle.decode, masks) if mask.sum() >= _MIN_AREA]
            num_small += len(masks) - len(truths)
            if truths:
                rows += _score_image(predictor, example, truths, number)
        if not rows and not num_small and num_pseudo:
            raise DataError(
                f"{sub}: all {num_pseudo} masks in {split!r} are machine-made, which are not "
                f"scored; expected masks that a person has drawn or checked, without is_pseudo."
            )
        if not rows:
            raise DataError(f"{sub}: no mask of at least {_MIN_AREA} pixels in {split!r}.")
        columns = (np.asarray(values) for values in zip(*rows, strict=True))
        scores[sub.name], notes[sub.name] = MaskScores(*columns), list(dataset.notes)
        if num_small:
            small = f"masks of fewer than {_MIN_AREA} pixels, which are not scored: {num_small}"
            notes[sub.name].append(small)
        if num_pseudo:
            notes[sub.name].append(f"machine-made masks, which are not scored: {num_pseudo}")
    for sub in _others(Path(folder), folders):
        notes[sub.name] = [f"no dataset with the split {split!r}, not scored"]
    return scores, notes


def summarize(scores: Mapping[str, MaskScores]) -> dict[str, float]:
    """Means over sources, in 0..1, of everything that `score_sources` measures.

    `oracle` is the best mask of a click, `fixed` the single level that is best over all sources.
    Correlation is Pearson's, of predicted and true IoU over all masks of all clicks. The
    `_error` figures are standard errors of the means.
    """
    tables = list(scores.values())
    fixed = np.mean([table.click_iou.mean(0) for table in tables], axis=0)
    out = {name: _mean([getattr(t, name) for t in tables]) for name in ("chosen", "oracle", "box")}
    out |= {"fixed": float(fixed.max()), "fixed_level": float(fixed.argmax() + 1)}
    out |= {"fill": _mean([t.fill for t in tables])}
    out |= {f"{name}_error": _standard_error(tables, name) for name in ("chosen", "oracle", "box")}
    true = np.concatenate([t.click_iou.ravel() for t in tables])
    predicted = np.concatenate([t.predicted_iou.ravel() for t in tables])
    varies = true.std() > 0 and predicted.std() > 0
    out["correlation"] = float(np.corrcoef(true, predicted)[0, 1]) if varies else float("nan")
    out["kendall_tau"] = _mean([kendall_tau_descending(t.predicted_area) for t in tables])
    return out


def markdown(
    scores: Mapping[str, MaskScores], about: Mapping[str, str], notes: Mapping[str, Sequence[str]]
) -> str:
    """The report: a row per source, their mean, the sizes of masks and the use of levels."""
    total, whole = summarize(scores), _joined(list(scores.values()))
    levels = whole.click_iou.shape[1]
    best_of = "best of six" if levels == 6 else "best of all masks"
    lines = ["# Evaluation: sources", "", *(f"- {k}: {v}" for k, v in about.items())]
    lines += [f"- {name}: {note}" for name, some in notes.items() for note in some]
    lines += [
        "",
        "IoU in percent. Chosen: the mask with the highest predicted IoU. Best level: the single "
        f"level that is best over all sources, {total['fixed_level']:.0f}. {best_of.capitalize()}: "
        "the best mask of a click. Box: the mask chosen for a box prompt. Fill: the box as mask.",
        "",
        f"| source | images | masks | chosen | best level | {best_of} | box | fill |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    level = int(total["fixed_level"]) - 1
    for name, t in scores.items():
        values = (t.chosen, t.click_iou[:, level], t.oracle, t.box, t.fill)
        figures = " | ".join(f"{100 * v.mean():.1f}" for v in values)
        lines.append(f"| {name} | {len(set(t.image.tolist()))} | {len(t)} | {figures} |")
    figures = " | ".join(
        f"**{100 * total[name]:.1f}**" for name in ("chosen", "fixed", "oracle", "box", "fill")
    )
    images = sum(len(set(t.image.tolist())) for t in scores.values())
    masks = sum(len(t) for t in scores.values())
    lines.append(f"| **mean of {len(scores)} sources** | {images} | {masks} | {figures} |")
    errors = [total.get(key, np.nan) for key in ("chosen_error", "", "oracle_error", "box_error")]
    figures = " | ".join("-" if np.isnan(v) else f"{100 * v:.1f}" for v in (*errors, np.nan))
    lines.append(f"| standard error | | | {figures} |")
    lines += [
        "",
        f"Correlation of predicted and true IoU: {total['correlation']:.2f}. Kendall's tau of "
        f"levels and areas: {total['kendall_tau']:.2f}.",
        "",
        f"| masks of | number | chosen | {best_of} | box |",
        "|---|---:|---:|---:|---:|",
    ]
    low = 0.0
    for high in SIZES:
        inside = (whole.area > low) & (whole.area <= high)
        if inside.any():
            values = (whole.chosen, whole.oracle, whole.box)
            figures = " | ".join(f"{100 * v[inside].mean():.1f}" for v in values)
            name = f"{100 * low:g} to {100 * high:g} % of the image"
            lines.append(f"| {name} | {inside.sum()} | {figures} |")
        low = high
    picked = np.bincount(whole.predicted_iou.argmax(1), minlength=levels) / len(whole)
    best = np.bincount(whole.click_iou.argmax(1), minlength=levels) / len(whole)
    lines += ["", "| level | is chosen, % | is the best, % |", "|---|---:|---:|"]
    for number, (a, b) in enumerate(zip(picked, best, strict=True), start=1):
        lines.append(f"| {number} | {100 * a:.0f} | {100 * b:.0f} |")
    return "\n".join(lines) + "\n"


def write(
    out: Path,
    scores: Mapping[str, MaskScores],
    about: Mapping[str, str],
    notes: Mapping[str, Sequence[str]],
) -> None:
    """Writes sources.md, sources.json and sources.csv (a row per mask)."""
    files.make_folder(out)
    files.write_text(out / "sources.md", markdown(scores, about, notes))
    by_source = {
        name: {key: float(getattr(t, key).mean()) for key in ("chosen", "oracle", "box", "fill")}
        for name, t in scores.items()
    }
    mean = {k: v for k, v in summarize(scores).items() if not np.isnan(v)}
    content = {"meta": dict(about), "mean": mean, "sources": by_source}
    text = json.dumps(content, indent=1)
    files.write_text(out / "sources.json", text + "\n")
    rows = [["source", "image", "area", "chosen", "oracle", "box", "fill"]]
    for name, t in scores.items():
        for row in zip(t.image, t.area, t.chosen, t.oracle, t.box, t.fill, strict=True):
            rows.append([name, row[0], *(f"{float(v):.5f}" for v in row[1:])])
    report.write_csv(out / "sources.csv", rows)


def _others(folder: Path, sources: Sequence[Path]) -> list[Path]:
    """The folders next to the sources; none where `folder` is the only source."""
    if sources == [folder.resolve()]:
        return []
    found = (sub for sub in sorted(folder.iterdir()) if sub.is_dir() and sub not in sources)
    return [sub for sub in found if not sub.name.startswith(".")]


def _progress(dataset: EvalDataset, show: bool) -> Iterator[RawExample]:
    positions = range(len(dataset.samples()))
    for position in tqdm(positions, desc=dataset.name, disable=not show, leave=False):
        yield dataset.source[position]


def _score_image(
    predictor: Predictor, example: RawExample, truths: Sequence[np.ndarray], number: int
) -> Iterator[tuple]:
    """The rows of the masks of one image, in the order of `MaskScores`."""
    where = f"{example.dataset}/{example.example_id}"
    size_hw = (example.height, example.width)
    predictor.set_image(
        decode.decode_image(
            example.image, where=where, size_hw=size_hw, is_displayed=example.is_displayed
        )
    )
    requests = []
    for mask in truths:
        x, y = centre_click(mask)
        requests.append(Request([(x + 0.5, y + 0.5)]))
    boxes = [_corners(mask) for mask in truths]
    clicked = predictor.predict_many(requests)
    boxed = predictor.predict_many([Request(box=box) for box in boxes])
    for mask, click, box, corners in zip(truths, clicked, boxed, boxes, strict=True):
        yield (
            number,
            _ious(click.masks, mask),
            np.asarray(click.scores, np.float64),
            click.masks.mean((1, 2)),
            _ious(box.masks, mask),
            np.asarray(box.scores, np.float64),
            mask.sum() / ((corners[2] - corners[0]) * (corners[3] - corners[1])),
            mask.mean(),
        )


def _corners(mask: np.ndarray) -> tuple[float, float, float, float]:
    x, y, w, h = tight_box(mask)
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def _ious(masks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    shared = (masks & truth).sum((1, 2))
    return shared / np.maximum((masks | truth).sum((1, 2)), 1)


def _picked(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    return values[np.arange(len(values)), by.argmax(1)]


def _mean(by_source: Sequence[np.ndarray]) -> float:
    return float(np.mean([values.mean() for values in by_source]))


def _joined(tables: Sequence[MaskScores]) -> MaskScores:
    names = [field.name for field in dataclasses.fields(MaskScores)]
    return MaskScores(*(np.concatenate([getattr(t, name) for t in tables]) for name in names))


def _standard_error(tables: Sequence[MaskScores], name: str) -> float:
    """Bootstrap over images within their source, from a fixed seed; nan for a single image."""
    rng = np.random.default_rng(0)
    variance = 0.0
    for table in tables:
        values = getattr(table, name)
        images = np.unique(table.image)
        if len(images) < 2:
            return float("nan")
        sums = np.asarray([values[table.image == i].sum() for i in images])
        counts = np.asarray([(table.image == i).sum() for i in images])
        drawn = rng.integers(0, len(images), (_RESAMPLES, len(images)))
        variance += (sums[drawn].sum(1) / counts[drawn].sum(1)).var()
    return float(np.sqrt(variance) / len(tables))
