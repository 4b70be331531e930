"""Saving and restoring a run: state, data position and meta, always of the same step."""

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util
from jax.experimental import multihost_utils

from semsam_jax.core import checkpoint_io
from semsam_jax.core.errors import CheckpointError, TrainingError
from semsam_jax.core.model_files import SCHEMA_VERSION
from semsam_jax.train.state import TrainState


class Checkpoints:
    """Checkpoints of one workdir (layout: `core.checkpoint_io`).

    Args:
        workdir: folder of the run; created if missing.
        keep: newest steps kept.

    Raises:
        TrainingError: the workdir cannot be written.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int):
        self._root = Path(workdir).resolve() / checkpoint_io.FOLDER
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            probe = self._root / f".write_probe_{jax.process_index()}"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise TrainingError(
                f"workdir {workdir}: cannot be written ({error.strerror or error}); choose "
                f"another --workdir or free some space."
            ) from error
        self._remove_incomplete_steps()
        self._last: int | None = None
        self._keep = keep

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Closing waits for the other processes, which one that fails must not do.
        if kind is None or jax.process_count() == 1:
            self.close()

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Made when it is needed: its threads would outlive an error of the configuration."""
        return ocp.CheckpointManager(
            self._root,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, create=False, cleanup_tmp_directories=True
            ),
            item_names=("state", "data", "meta"),
            item_handlers={
                # Uncompressed: packing float32 weights takes twice as long as writing them.
                "state": ocp.PyTreeCheckpointHandler(use_compression=False),
                "data": ocp.JsonCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """Newest complete step, or None for a fresh workdir."""
        steps = checkpoint_io.complete_steps(self._root)
        return int(steps[-1].name) if steps else None

    def save(self, state: TrainState, data_state: dict, meta: dict, wait: bool = False) -> None:
        """Saves state, data position and meta of one step; a step already saved is left.

        Raises:
            TrainingError: the files cannot be written; earlier steps stay as they are.
        """
        step = int(state.step)
        if self._last == step:
            return
        meta = {**meta, "schema_version": SCHEMA_VERSION, "step": step}
        with self._explained(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state.to_tree()),
                    data=ocp.args.JsonSave(data_state),
                    meta=ocp.args.JsonSave(meta),
                ),
            )
            if wait:
                self._manager.wait_until_finished()
        self._last = step

    def restore(self, template: TrainState, meta: dict) -> tuple[TrainState, dict] | None:
        """Restores the newest step that can be read onto the shardings of `template`.

        A damaged step is set aside with a message, and the one before it is taken.

        Args:
            template: a state whose arrays carry the wanted shapes and shardings.
            meta: of the starting run; `meta["must_match"]` is compared key by key.

        Returns:
            (state, data state), or None for a fresh workdir.

        Raises:
            CheckpointError: the checkpoint belongs to another configuration (all
                differing keys are listed), or none of the steps can be read.
        """
        damaged = []
        while (step := self.latest_step()) is not None:
            restored, problem = self._restore(step, template, meta)
            if _all_agree(problem is None):
                self._last = step
                return restored
            damaged.append(step)
            if jax.process_index() == 0:
                self._set_aside(step, "damaged", str(problem or "another process failed"))
            _all_agree(True)
            self._manager.reload()
        if damaged:
            raise CheckpointError(
                f"checkpoints in {self._root}: none can be read (steps "
                f"{', '.join(map(str, damaged))} are damaged and set aside as damaged-STEP); "
                f"choose another --workdir to start from the beginning."
            )
        return None

    def close(self) -> None:
        """Waits for pending saves and frees the manager."""
        manager = self.__dict__.pop("_manager", None)
        if manager is None:
            return
        with self._explained(None):
            manager.wait_until_finished()
        manager.close()

    def _restore(
        self, step: int, template: TrainState, meta: dict
    ) -> tuple[tuple[TrainState, dict] | None, str | None]:
        """Returns (state and data state, None), or (None, what is damaged)."""
        folder = self._root / str(step)
        try:
            saved = checkpoint_io.read_meta(folder)
        except CheckpointError as error:
            if error.__cause__ is None:  # Readable, but not for us.
                raise
            return None, str(error)
        _check_same_run(saved.get("must_match", {}), meta["must_match"], folder)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template.to_tree())
        places = ocp.checkpoint_utils.construct_restore_args(abstract)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(abstract, restore_args=places),
                    data=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:  # What Orbax raises for a damaged file is a bare Exception.
            return None, str(error).splitlines()[0][:200]
        return (TrainState.from_tree(restored.state), restored.data), None

    @contextlib.contextmanager
    def _explained(self, step: int | None) -> Iterator[None]:
        """Turns whatever a failed write raises, now or in the background, into one error."""
        try:
            yield
        except jax.errors.JaxRuntimeError:  # Of another process that is gone, not of the disk.
            raise
        except (OSError, ValueError, RuntimeError) as error:
            name = "the last one" if step is None else f"step {step}"
            raise TrainingError(
                f"checkpoint of {name} in {self._root}: not written "
                f"({str(error).splitlines()[0]}); earlier checkpoints are untouched; free space "
                f"or repair the workdir, then start the same command again."
            ) from error

    def _remove_incomplete_steps(self) -> None:
        if jax.process_index() == 0:
            for folder in list(self._root.iterdir()):
                if folder.name.isdigit() and not checkpoint_io.is_complete(folder):
                    self._set_aside(int(folder.name), "incomplete", "killed while saving?")
        _all_agree(True)

    def _set_aside(self, step: int, why: str, details: str) -> None:
        """Renames a step that cannot be used."""
        folder = self._root / str(step)
        aside = folder.with_name(f"{why}-{step}")
        logging.warning(
            "checkpoint %s is %s (%s); set aside as %s, the step before it is used.",
            folder,
            why,
            details,
            aside.name,
        )
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def _all_agree(is_fine: bool) -> bool:
    """Whether a thing is fine on all processes; also a meeting point for them."""
    if jax.process_count() == 1:
        return is_fine
    return bool(multihost_utils.process_allgather(np.asarray(is_fine)).all())


def _check_same_run(saved: dict, wanted: dict, where: Path) -> None:
    saved, wanted = (traverse_util.flatten_dict(values, sep=".") for values in (saved, wanted))
    differing = [
        f"{key}: checkpoint {saved.get(key)!r}, this run {wanted.get(key)!r}"
        for key in sorted(set(saved) | set(wanted))
        if saved.get(key) != wanted.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"checkpoint {where} belongs to another configuration: {'; '.join(differing)}. Use "
            f"the saved values, another --workdir, or --config.model.warm_start to start from "
            f"its weights."
        )
