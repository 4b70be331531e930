"""Saves and restores a run: state, data position and metadata of the same step."""

import contextlib
import fcntl
import functools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util
from jax.experimental import multihost_utils

from semsam_jax.core import checkpoint_io
from semsam_jax.core.errors import CheckpointError, ConfigError, TrainingError
from semsam_jax.core.model_files import SCHEMA_VERSION
from semsam_jax.core.paths import as_path, is_local
from semsam_jax.parallel.distributed import has_lost_process
from semsam_jax.train.state import TrainState


@contextlib.contextmanager
def sole_run(workdir: str | os.PathLike) -> Iterator[None]:
    """Keeps a second run out of a local workdir, where each would remove what the other writes.

    The lock ends with the process, however that ends. Disks without locks are done without.

    Raises:
        TrainingError: another run is there.
    """
    if not is_local(workdir) or jax.process_index() != 0:
        yield
        return
    file = Path(workdir) / ".lock"
    with contextlib.ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(file.open("a+"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stack.callback(file.unlink, missing_ok=True)
        except BlockingIOError as error:
            raise TrainingError(
                f"workdir {workdir}: another run is training here; stop it or wait for its end, or "
                "choose another --workdir."
            ) from error
        except OSError:
            pass  # no locks on this disk, or a folder that `Checkpoints` says is not to be written
        yield


class Checkpoints:
    """Checkpoints of one workdir (layout: `core.checkpoint_io`).

    Args:
        workdir: folder of the run; created if missing.
        keep: newest steps kept.

    Raises:
        TrainingError: the workdir cannot be written.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int):
        root = Path(workdir).resolve() if is_local(workdir) else as_path(workdir)
        self._root = root / checkpoint_io.FOLDER
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
        # Closing waits for the other processes, which a failing one must not do.
        if kind is None or jax.process_count() == 1:
            self.close()

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Created on first use: its threads would outlive a configuration error."""
        return ocp.CheckpointManager(
            self._root,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, create=False, cleanup_tmp_directories=True
            ),
            item_names=("state", "data", "meta"),
            item_handlers={
                # Uncompressed: compressing float32 weights takes twice as long as writing them.
                "state": ocp.PyTreeCheckpointHandler(use_compression=False),
                "data": ocp.JsonCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(checkpoint_io.META_FILE),
            },
        )

    def latest_step(self) -> int | None:
        """Newest complete step, or None for a fresh workdir."""
        steps = checkpoint_io.complete_steps(self._root)
        return int(steps[-1].name) if steps else None

    def latest_meta(self) -> dict | None:
        """Metadata of the newest step with readable metadata, or None for a fresh workdir."""
        for folder in reversed(checkpoint_io.complete_steps(self._root)):
            try:
                return checkpoint_io.read_meta(folder)
            except CheckpointError as error:
                if error.__cause__ is None:  # Readable, but not for us.
                    raise
        return None

    def save(self, state: TrainState, data_state: dict, meta: dict, wait: bool = False) -> None:
        """Saves state, data position and metadata of one step, unless it is saved already.

        Raises:
            TrainingError: the files cannot be written; earlier steps are kept.
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

    def restore(self, template: TrainState) -> tuple[TrainState, dict, dict] | None:
        """Restores the newest readable step with the shardings of `template`.

        A damaged step is set aside with a message, and the previous one is used.

        Args:
            template: a state of arrays or shapes, with the wanted shapes and shardings.

        Returns:
            (state, data state, meta), or None for a fresh workdir.

        Raises:
            CheckpointError: none of the steps can be read.
        """
        damaged = []
        while (step := self.latest_step()) is not None:
            restored, problem = self._restore(step, template)
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
        self, step: int, template: TrainState
    ) -> tuple[tuple[TrainState, dict, dict] | None, str | None]:
        """Returns (state, data state and meta; None), or (None, what is damaged)."""
        folder = self._root / str(step)
        try:
            saved = checkpoint_io.read_meta(folder)
        except CheckpointError as error:
            if error.__cause__ is None:  # Readable, but not for us.
                raise
            return None, str(error)
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
        return (TrainState.from_tree(restored.state), restored.data, saved), None

    @contextlib.contextmanager
    def _explained(self, step: int | None) -> Iterator[None]:
        """Turns any failure of a write, now or in the background, into one error."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if has_lost_process(error):  # The disk is not to blame.
                raise
            name = "the last one" if step is None else f"step {step}"
            raise TrainingError(
                f"checkpoint of {name} in {self._root}: not written "
                f"({str(error).splitlines()[0]}); earlier checkpoints are untouched; free space "
                f"or repair the workdir; the same command resumes."
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
        if aside.exists():
            shutil.rmtree(aside) if is_local(aside) else aside.rmtree()
        folder.rename(aside)


def _all_agree(is_fine: bool) -> bool:
    """Whether a condition holds on all processes; also a barrier."""
    if jax.process_count() == 1:
        return is_fine
    return bool(multihost_utils.process_allgather(np.asarray(is_fine)).all())


CHANGEABLE = ("seed", "steps", "loss", "optimizer", "refit")
"""Keys that `--allow_change` accepts, groups with all their keys; see `_FIXED`."""

_FIXED = ("optimizer.frozen", "optimizer.ema")
"""Keys that decide which arrays a checkpoint holds."""


_SHARES = ("data.datasets.", "data.generic_datasets.")
"""Keys where none is the same as 0: a recipe may name a dataset that it did not name before."""


def check_same_run(
    saved_meta: Mapping, meta: Mapping, defaults: Mapping, allowed: Sequence[str] = ()
) -> list[str]:
    """Compares the configuration of a checkpoint with that of the starting run.

    Args:
        saved_meta: meta of the checkpoint; its `must_match` is compared key by key.
        meta: of the starting run.
        defaults: `must_match` of a run with default values, for keys that are newer than the
            checkpoint.
        allowed: keys of `CHANGEABLE` that may differ, such as "optimizer.learning_rate".

    Returns:
        The changes, one text each.

    Raises:
        ConfigError: `allowed` names what cannot change.
        CheckpointError: other keys differ; all of them are listed.
    """
    for key in allowed:
        if key in _FIXED or key.split(".")[0] not in CHANGEABLE:
            raise ConfigError(
                f"--allow_change: {key!r} cannot change within a run; use some of "
                f"{', '.join(CHANGEABLE)} or a key of them, such as optimizer.learning_rate."
            )
    saved, wanted, defaults = (
        traverse_util.flatten_dict(dict(values), sep=".")
        for values in (saved_meta.get("must_match", {}), meta["must_match"], defaults)
    )
    changed, differing = [], []
    for key in sorted(saved.keys() | wanted.keys()):
        before = saved[key] if key in saved else defaults.get(key)
        now = wanted.get(key)
        is_share = key.startswith(_SHARES)
        if before == now or (is_share and (before or 0.0) == (now or 0.0)):
            continue
        is_allowed = key not in _FIXED and any(
            key == name or key.startswith(f"{name}.") for name in allowed
        )
        told = f"{key}: checkpoint {before!r}, this run {now!r}"
        (changed if is_allowed else differing).append(told)
    if differing:
        raise CheckpointError(
            f"checkpoint of step {saved_meta['step']} belongs to another configuration: "
            f"{'; '.join(differing)}. Use the saved values, another --workdir, "
            f"--allow_change=KEY,KEY for keys of {', '.join(CHANGEABLE)}, or "
            f"--config.model.warm_start to start from its weights."
        )
    return changed
