"""Finds and reads the model in a folder: the files of a model, or the newest step of a run.

    DIR/model.safetensors, DIR/config.json   a model (`core.model_files`): converted or shipped
    DIR/model/                               the same, left by a finished training run
    DIR/checkpoints/STEP/state               parameters, optimiser state, step (Orbax)
    DIR/checkpoints/STEP/data                position of the input pipeline
    DIR/checkpoints/STEP/meta                JSON: preset, model_config, level_order, ...

Steps are written by `train.checkpoints`. Every function here accepts DIR, DIR/checkpoints or
a step; of a run that has both, the newer one is used.
"""

import logging
import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from semsam_jax.core import lora, model_files
from semsam_jax.core.errors import CheckpointError
from semsam_jax.core.paths import AnyPath, as_path, is_local

FOLDER = "checkpoints"
MODEL = "model"
LAST_RUN = "last"
"""Given instead of a checkpoint: the user's training run that finished last."""

SHIPPED = Path(__file__).parents[1] / "weights" / "lite"
"""The model that comes with the package."""

META_FILE = "metadata"
"""File in DIR/checkpoints/STEP/meta; the name that Orbax is told to write it under."""


def is_complete(step_dir: AnyPath) -> bool:
    """Whether Orbax has finished writing a step, and its state and meta are there.

    Whether they can be read shows when they are.
    """
    if not (step_dir / "meta" / META_FILE).exists():
        return False
    import orbax.checkpoint as ocp  # a second, which a model without steps does not need

    # It warns of every item, in three lines, that there is no handler to restore it.
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            found = checkpointer.metadata(step_dir)
    finally:
        log.setLevel(level)
    return found.commit_timestamp_nsecs is not None and "state" in found.item_metadata


def complete_steps(path: str | os.PathLike) -> list[AnyPath]:
    """Returns the complete step folders below `path`, oldest first."""
    return [step for step in _steps(as_path(path)) if is_complete(step)]


def _steps(root: AnyPath) -> list[AnyPath]:
    """The step folders below `root`, complete or not, oldest first."""
    if (root / "state").is_dir():
        return [root]
    if (root / FOLDER).is_dir():
        root = root / FOLDER
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def find_model(path: str | os.PathLike) -> AnyPath:
    """Returns the folder that holds the newest model below `path`.

    Returns:
        A folder with the two files of a model, or a step folder.

    Raises:
        CheckpointError: no model is there; says what was found.
    """
    root = as_path(path)
    if root.name == model_files.WEIGHTS and root.is_file():
        root = root.parent
    if model_files.has_model(root):
        return root
    trained = -1
    if model_files.has_model(root / MODEL):
        trained = model_files.read_config(root / MODEL).get("step", 0)
    for step in reversed(_steps(root)):
        if step.name.isdigit() and int(step.name) <= trained:
            break
        if is_complete(step):
            return step.resolve()
    if trained >= 0:
        return root / MODEL
    if not root.exists():
        raise CheckpointError(
            f"checkpoint {root}: no such folder or file; give the --workdir of a training run, the "
            f"--out of `semsam convert`, or a .pth file of the original."
        )
    found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "a file"
    raise CheckpointError(
        f"checkpoint {root}: no complete step found (found: {found or 'nothing'}); expected "
        f"{model_files.WEIGHTS} and {model_files.CONFIG}, or {FOLDER}/STEP/state and meta. Convert "
        f"a .pth file first: `semsam convert FILE.pth --out DIR`."
    )


def read_meta(path: str | os.PathLike) -> dict:
    """Returns the metadata of the newest model below `path`."""
    folder = find_model(path)
    if model_files.has_model(folder):
        return model_files.read_config(folder)
    return model_files.read_versioned(folder / "meta" / META_FILE)


def read_model(path: str | os.PathLike) -> tuple[dict, dict]:
    """Returns (params, meta) of the newest model below `path`; params are NumPy arrays.

    Low-rank updates are merged into their kernels. Averaged parameters are returned if the run kept
    them (`meta["has_ema"]`).

    Raises:
        CheckpointError: no model, unreadable files or another schema version.
    """
    folder = find_model(path)
    if model_files.has_model(folder):
        return model_files.load_model_files(folder)
    meta = model_files.read_versioned(folder / "meta" / META_FILE)
    params = _restore(folder / "state", "ema_params" if meta.get("has_ema") else "params")
    return lora.merged(params), meta


def checksum(params: Mapping[str, Any]) -> int:
    """CRC-32 of all parameters of a model, nested mappings of arrays."""
    total = 0
    for name in sorted(params):
        leaf = params[name]
        total = zlib.crc32(name.encode(), total)
        if isinstance(leaf, Mapping):
            total = zlib.crc32(checksum(leaf).to_bytes(4), total)
        else:
            total = zlib.crc32(np.asarray(leaf).tobytes(), total)
    return total


def update_meta(path: str | os.PathLike, changes: dict) -> None:
    """Changes entries of the metadata of the newest model below `path`, all or none.

    Args:
        path: a run or a model.
        changes: such as `level_order`: the tokens of levels 1, 2, ...

    Raises:
        CheckpointError: an order does not name each token once, or the file cannot be written.
    """
    folder = find_model(path)
    meta = read_meta(folder)
    order, wanted = changes.get("level_order"), list(range(len(meta.get("level_order", ()))))
    if order is not None and sorted(order) != wanted:
        raise CheckpointError(
            f"checkpoint {folder}: level order {order} does not name each of {wanted} once."
        )
    meta |= changes
    if model_files.has_model(folder):
        model_files.write_config(folder, meta)
        return
    file = folder / "meta" / META_FILE
    model_files.write_json(file, meta)


def _restore(folder: AnyPath, key: str) -> dict:
    """Reads one item of a state as NumPy arrays, whatever devices it was written on."""
    import jax
    import orbax.checkpoint as ocp

    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            described = checkpointer.metadata(folder).item_metadata.tree
            wanted = {key: described[key]}
            places = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            options = ocp.args.PyTreeRestore(wanted, restore_args=places, partial_restore=True)
            restored = checkpointer.restore(folder, args=options)
    except Exception as error:  # Orbax raises a bare Exception for damaged files.
        raise CheckpointError(
            f"checkpoint {folder}: damaged or incomplete ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0][:200]}); use an earlier step or convert it "
            f"again."
        ) from error
    return restored[key]


def cache_dir() -> AnyPath:
    """Folder for caches of this user; SEMSAM_JAX_CACHE overrides it."""
    override = os.environ.get("SEMSAM_JAX_CACHE")
    if override:
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "semsam_jax"


def remember_last_run(workdir: str | os.PathLike) -> None:
    """Records the workdir of a finished training run for `last_run`.

    A finished run does not fail because the cache folder cannot be written.
    """
    folder = cache_dir()
    where = str(Path(workdir).resolve()) if is_local(workdir) else os.fspath(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "last_run").write_text(where)
    except OSError as error:
        logging.getLogger(__name__).warning(
            "cache %s cannot be written (%s): commands will not find this run by themselves; give "
            "it as --checkpoint",
            folder,
            error.strerror or error,
        )


def last_run() -> AnyPath | None:
    """Returns the workdir recorded by `remember_last_run` if its model is still there."""
    file = cache_dir() / "last_run"
    if not file.is_file():
        return None
    workdir = as_path(file.read_text().strip())
    is_there = model_files.has_model(workdir / MODEL) or complete_steps(workdir)
    return workdir if is_there else None


def choose_checkpoint(given: str | os.PathLike | None) -> AnyPath:
    """Returns the checkpoint that a command uses, and prints it.

    Args:
        given: a path, `"last"` for the training run that finished last, or None for the model
            that comes with the package.

    Raises:
        CheckpointError: there is none.
    """
    if given is not None and os.fspath(given) == LAST_RUN and not Path(LAST_RUN).exists():
        chosen = last_run()
        if chosen is None:
            raise CheckpointError(
                f"checkpoint {LAST_RUN}: no finished training run of this user was found; give a "
                f"folder, or train one with `semsam train --config=configs/joint.py "
                f"--workdir=DIR`."
            )
    elif given is not None:
        chosen = as_path(given)
        _check_name(chosen)
    elif model_files.has_model(SHIPPED):
        chosen = SHIPPED
    else:
        raise CheckpointError(
            f"checkpoint: none given, and this installation has no {SHIPPED}; give a folder, or "
            f"{LAST_RUN} for the training run that finished last."
        )
    encoding = sys.stdout.encoding or "utf-8"
    shown = str(chosen).encode(encoding, "backslashreplace").decode(encoding)
    print(f"checkpoint: {shown}", flush=True)
    return chosen


def _check_name(path: AnyPath) -> None:
    """Raises CheckpointError where no file can be looked for: the name is too long, say."""
    try:
        if is_local(path):
            path.exists()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {str(path)[:60]}...: cannot be read ({error.strerror or error}); give a "
            f"folder."
        ) from error
