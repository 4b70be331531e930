"""The one on-disk layout of a model: read it, write it, find the newest complete step.

    DIR/checkpoints/STEP/state   parameters, optimiser state, step (Orbax)
    DIR/checkpoints/STEP/data    position of the input pipeline (training only)
    DIR/checkpoints/STEP/meta    JSON: preset, model_config, level_order, text, vocabulary, ...

A training run writes it through `train.checkpoints`; a converted checkpoint is the same
layout at step 0 with parameters only. Every path accepts DIR, DIR/checkpoints or a step.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from semsam_jax.core import lora
from semsam_jax.core.errors import CheckpointError

if TYPE_CHECKING:  # imported where it is used: it takes long
    import orbax.checkpoint as ocp

SCHEMA_VERSION = 1
FOLDER = "checkpoints"
_COMPLETE = ("state/_METADATA", "state/manifest.ocdbt", "meta/metadata", "_CHECKPOINT_METADATA")


def is_complete(step_dir: Path) -> bool:
    """Whether a step folder has everything that a finished save leaves behind."""
    return all((step_dir / name).exists() for name in _COMPLETE)


def complete_steps(path: str | os.PathLike) -> list[Path]:
    """Returns the complete step folders below `path`, oldest first."""
    root = Path(path)
    if (root / "state").is_dir():
        return [root] if is_complete(root) else []
    if (root / FOLDER).is_dir():
        root = root / FOLDER
    if not root.is_dir():
        return []
    steps = [p for p in root.iterdir() if p.name.isdigit() and is_complete(p)]
    return sorted(steps, key=lambda p: int(p.name))


def newest_step(path: str | os.PathLike) -> Path:
    """Returns the newest complete step folder; CheckpointError says what was found."""
    steps = complete_steps(path)
    if steps:
        return steps[-1].resolve()
    root = Path(path)
    if not root.exists():
        raise CheckpointError(
            f"checkpoint {root}: no such folder; give the --workdir of a training run or the "
            f"--out of `python -m semsam_jax convert`."
        )
    found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "a file"
    raise CheckpointError(
        f"checkpoint {root}: no complete step found (found: {found or 'nothing'}); wanted "
        f"{FOLDER}/STEP/state and meta. A .pth file is first converted with "
        f"`python -m semsam_jax convert FILE.pth --out DIR`."
    )


def state_handler() -> "ocp.PyTreeCheckpointHandler":
    """Reads and writes arrays as they are: float32 weights shrink by a tenth, and packing them
    takes twice as long as writing them.
    """
    import orbax.checkpoint as ocp

    return ocp.PyTreeCheckpointHandler(use_compression=False)


def read_meta(path: str | os.PathLike) -> dict:
    """Returns the JSON meta of the newest complete step below `path`."""
    file = newest_step(path) / "meta" / "metadata"
    try:
        meta = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {file}: unreadable meta ({error}).") from error
    version = meta.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"checkpoint {file.parent.parent}: schema version {version!r}, this release reads "
            f"{SCHEMA_VERSION}; convert or train it again with this release."
        )
    return meta


def read_model(path: str | os.PathLike) -> tuple[dict, dict]:
    """Returns (params, meta) of the newest complete step; params are NumPy arrays.

    Low-rank updates are merged into their kernels. The averaged parameters are returned
    where the run kept them (`meta["has_ema"]`).

    Raises:
        CheckpointError: no complete step, unreadable files or another schema version.
    """
    return start_reading(path)()


def start_reading(path: str | os.PathLike) -> Callable[[], tuple[dict, dict]]:
    """Begins `read_model`; the returned function waits for its result.

    Reads what Orbax wrote through TensorStore, whose threads go on beside the caller: Orbax
    itself takes three times as long, and cannot be imported without JAX.

    Raises:
        CheckpointError: as `read_model`, here or while waiting.
    """
    meta = read_meta(path)
    folder = newest_step(path) / "state"
    key = "ema_params" if meta.get("has_ema") else "params"
    try:
        arrays = _start_arrays(folder, key)
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise _damaged(folder, error) from error

    def wait() -> tuple[dict, dict]:
        params: dict = {}
        try:
            for (*above, last), array in arrays.items():
                part = params
                for name in above:
                    part = part.setdefault(name, {})
                part[last] = array.result()
        except ValueError as error:
            raise _damaged(folder, error) from error
        return lora.merged(params), meta

    return wait


def _start_arrays(folder: Path, key: str) -> dict:
    """Futures of NumPy arrays by their names below `key`.

    The layout is documented by Orbax ("Checkpoint format"): `_METADATA` lists the arrays, each
    of which is a Zarr array in the folder's OCDBT store, under its names joined by dots.
    """
    import tensorstore

    described = json.loads((folder / "_METADATA").read_text())
    driver = "zarr3" if described["use_zarr3"] else "zarr"
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    context = tensorstore.Context()
    opened = {}
    for entry in described["tree_metadata"].values():
        names = [part["key"] for part in entry["key_metadata"]]
        if names[0] == key:
            spec = {"driver": driver, "kvstore": {**store, "path": ".".join(names)}}
            opened[tuple(names[1:])] = tensorstore.open(spec, open=True, context=context)
    if not opened:
        raise KeyError(key)
    return {names: array.result().read() for names, array in opened.items()}


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {folder}: damaged or incomplete ({type(error).__name__}: "
        f"{str(error).splitlines()[0]}); use an earlier step or convert it again."
    )


def write_model(path: str | os.PathLike, params: Mapping, meta: Mapping) -> Path:
    """Writes parameters and meta as step 0 of a new checkpoint folder.

    The folder appears whole or not at all. An existing checkpoint is not overwritten.

    Returns:
        The step folder.
    """
    import orbax.checkpoint as ocp

    root = Path(path).resolve()
    if (root / FOLDER).exists():
        raise CheckpointError(
            f"checkpoint {root}: already holds a checkpoint; choose an empty folder or delete it."
        )
    partial = root / f".{FOLDER}.partial"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
        handlers = {"state": state_handler(), "meta": ocp.JsonCheckpointHandler()}
        with ocp.CheckpointManager(partial, options=options, item_handlers=handlers) as manager:
            manager.save(
                0,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave({"params": dict(params)}),
                    meta=ocp.args.JsonSave({**meta, "schema_version": SCHEMA_VERSION}),
                ),
            )
        os.replace(partial, root / FOLDER)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {root}: cannot be written ({error.strerror or error}); check the path, "
            f"its permissions and the free space."
        ) from error
    return root / FOLDER / "0"


def write_level_order(path: str | os.PathLike, level_order: list[int]) -> None:
    """Writes the token of level 1, 2, ... into the meta of the newest complete step."""
    meta = read_meta(path)
    file = newest_step(path) / "meta" / "metadata"
    wanted = list(range(len(meta["level_order"])))
    if sorted(level_order) != wanted:
        raise CheckpointError(
            f"checkpoint {file}: level order {level_order} does not name each of {wanted} once."
        )
    partial = file.with_name(".metadata.partial")
    try:
        partial.write_text(json.dumps(meta | {"level_order": level_order}))
        os.replace(partial, file)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {file}: cannot be written ({error.strerror or error}); check its "
            f"permissions, or copy the checkpoint."
        ) from error


def cache_dir() -> Path:
    """Folder for caches of this user; SEMSAM_JAX_CACHE overrides it."""
    override = os.environ.get("SEMSAM_JAX_CACHE")
    if override:
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "semsam_jax"


def remember_last_run(workdir: str | os.PathLike) -> None:
    """Records the workdir of a finished main-job run as the default checkpoint."""
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "last_run").write_text(str(Path(workdir).resolve()))


def last_run() -> Path | None:
    """Returns the workdir recorded by `remember_last_run` if its checkpoint still exists."""
    file = cache_dir() / "last_run"
    if not file.is_file():
        return None
    workdir = Path(file.read_text().strip())
    return workdir if complete_steps(workdir) else None


def default_checkpoint() -> Path:
    """Workdir of the last finished main job; CheckpointError says how to make one."""
    workdir = last_run()
    if workdir is None:
        raise CheckpointError(
            "checkpoint: none given and no finished training run found; give --checkpoint DIR, "
            "or make one with `python -m semsam_jax.main --workdir=DIR` or "
            "`python -m semsam_jax convert FILE.pth --out DIR`."
        )
    return workdir
