"""Saving and restoring a run: state, data position and meta, always of the same step."""

import os
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging

from semsam_jax.core import checkpoint_io
from semsam_jax.core.errors import CheckpointError, TrainingError
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
        self._manager = ocp.CheckpointManager(
            self._root,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=False),
            item_names=("state", "data", "meta"),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
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
        if self.latest_step() == step:
            return
        meta = {**meta, "schema_version": checkpoint_io.SCHEMA_VERSION, "step": step}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state.to_tree()),
                    data=ocp.args.JsonSave(data_state),
                    meta=ocp.args.JsonSave(meta),
                ),
            )
            if wait:
                self._manager.wait_until_finished()
        except OSError as error:
            raise TrainingError(
                f"checkpoint of step {step} in {self._root}: not written ({error}); earlier "
                f"checkpoints are untouched; free space or repair the workdir, then start again."
            ) from error

    def restore(self, template: TrainState, meta: dict) -> tuple[TrainState, dict] | None:
        """Restores the newest complete step onto the shardings of `template`.

        Args:
            template: a state whose arrays carry the wanted shapes and shardings.
            meta: of the starting run; `meta["must_match"]` is compared key by key.

        Returns:
            (state, data state), or None for a fresh workdir.

        Raises:
            CheckpointError: the checkpoint belongs to another configuration (all
                differing keys are listed) or is damaged.
        """
        step = self.latest_step()
        if step is None:
            return None
        saved = checkpoint_io.read_meta(self._root)
        _check_same_run(saved.get("must_match", {}), meta["must_match"], self._root / str(step))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template.to_tree())
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"checkpoint {self._root / str(step)}: damaged ({str(error).splitlines()[0]}); "
                f"delete this step folder to resume from the one before it."
            ) from error
        return TrainState.from_tree(restored.state), restored.data

    def close(self) -> None:
        """Waits for pending saves and frees the manager."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _remove_incomplete_steps(self) -> None:
        if jax.process_index() != 0:
            return
        for folder in self._root.iterdir():
            if folder.name.isdigit() and not checkpoint_io.is_complete(folder):
                aside = folder.with_name(f"incomplete-{folder.name}")
                logging.warning(
                    "checkpoint %s is incomplete (killed while saving?); set aside as %s, the "
                    "step before it is used.",
                    folder,
                    aside.name,
                )
                folder.rename(aside)


def _check_same_run(saved: dict, wanted: dict, where: Path) -> None:
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
