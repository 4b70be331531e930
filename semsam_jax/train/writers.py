"""Metric writers: a JSONL file, TensorBoard files and a progress line.

The writers have the methods of clu's MetricWriter; clu's own import TensorFlow.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from semsam_jax.core.paths import as_path, is_local

_METRICS = "metrics.jsonl"


class MetricWriter:
    """Writes to WORKDIR/metrics.jsonl and WORKDIR/tensorboard.

    Only process 0 writes; the others are silent. In a bucket files cannot be appended to: they are
    kept locally and copied by `flush`.
    """

    def __init__(self, workdir: str | os.PathLike):
        self._is_writer = jax.process_index() == 0
        if not self._is_writer:
            return
        from tensorboardX import SummaryWriter

        self._workdir = as_path(workdir)
        self._own = None if is_local(workdir) else tempfile.TemporaryDirectory()
        folder = self._workdir if self._own is None else Path(self._own.name)
        if self._own is not None and (self._workdir / _METRICS).exists():
            (folder / _METRICS).write_bytes((self._workdir / _METRICS).read_bytes())
        self._folder = folder
        self._jsonl = (folder / _METRICS).open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one record of scalars."""
        if not self._is_writer:
            return
        values = {name: float(value) for name, value in scalars.items()}
        record = {"step": step, "time": round(time.time(), 3), **values}
        self._jsonl.write(json.dumps(record) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes uint8 [h,w,3] images to TensorBoard."""
        if self._is_writer:
            for name, image in images.items():
                self._board.add_image(name, image, step, dataformats="HWC")

    def write_text(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts to TensorBoard, as they are."""
        if self._is_writer:
            for name, text in texts.items():
                indented = "\n".join(f"    {line}" for line in text.splitlines())
                self._board.add_text(name, indented, step)

    def flush(self) -> None:
        """Pushes everything to disk, or into the bucket."""
        if not self._is_writer:
            return
        self._jsonl.flush()
        self._board.flush()
        if self._own is not None:
            for file in (path for path in self._folder.rglob("*") if path.is_file()):
                target = self._workdir / file.relative_to(self._folder).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())

    def close(self) -> None:
        """Flushes and closes the files."""
        if not self._is_writer or self._jsonl.closed:
            return
        self.flush()
        self._jsonl.close()
        self._board.close()
        if self._own is not None:
            self._own.cleanup()


class ProgressLine:
    """One line per report: step, loss and its streams, images/s, time left."""

    def __init__(self, total_steps: int, stream=None, weights: Mapping[str, float] | None = None):
        """Creates the line.

        Args:
            total_steps: of the run.
            stream: where it is printed; standard output by default.
            weights: of the streams in the loss, shown where they are not 1.
        """
        self._total = total_steps
        self._weights = weights or {}
        self._stream = sys.stdout if stream is None else stream
        self._is_writer = jax.process_index() == 0

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Prints a line; `values` holds `images_per_sec`, `sec_per_step`, and the losses if any is
        finite.
        """
        if not self._is_writer:
            return
        match, wait = values["host_matching_share"], values["input_wait_share"]
        left = (self._total - step) * values["sec_per_step"]
        streams = []
        for name in ("interactive", "generic"):
            if f"{name}/total" in values:
                weight = self._weights.get(name, 1.0)
                factor = "" if weight == 1 else f"{weight:g} x "
                streams.append(f"{name} {factor}{values[f'{name}/total']:.3f}")
        losses = f"loss {values['loss']:.3f}" if "loss" in values else "all steps skipped"
        losses += f" ({', '.join(streams)})" if streams else ""
        line = (
            f"step {step:>{len(str(self._total))}}/{self._total}  {losses}  "
            f"{values['images_per_sec']:.1f} images/s  match {100 * match:.1f}%  "
            f"input {100 * wait:.1f}%  ETA {format_duration(left)}"
        )
        print(line, file=self._stream, flush=True)


def format_duration(seconds: float) -> str:
    """Formats seconds as 45s, 3m20s, 2h05m or 3d04h."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"
