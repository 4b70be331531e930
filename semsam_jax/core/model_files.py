"""A model as two files: `model.safetensors` (weights) and `config.json` (metadata).

    save_model("released", params, config)
    params, config = load_model_files("released")

`config.json` holds what `inference.loading` needs to build the network (`preset`,
`model_config`, `level_order`, `prompt_preset`, `image_size`, `text`, `vocabulary`,
`class_heads_trained`) and further metadata. Weights have dotted names, are stored in float32,
bfloat16 or float16, and are loaded as float32.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from semsam_jax.core.errors import CheckpointError
from semsam_jax.core.old_names import upgrade_meta
from semsam_jax.core.paths import AnyPath, as_path, is_local

SCHEMA_VERSION = 1
_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<head")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
STORED_DTYPES = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}

_PATHS = {
    "data": ("root", "custom", "custom_images"),
    "model": ("warm_start", "backbone_weights", "text_weights"),
}


def has_model(folder: str | os.PathLike) -> bool:
    """Whether a folder holds both files of a model."""
    root = as_path(folder)
    return all((root / name).is_file() for name in (CONFIG, WEIGHTS))


def save_model(
    folder: str | os.PathLike,
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    dtype: str = "float32",
    overwrite: bool = False,
) -> AnyPath:
    """Writes a model atomically: a reader finds the old one, none, or the new one.

    Args:
        folder: where; made if missing. A bucket (`gs://...`) is possible.
        params: nested mappings of arrays, without low-rank updates (`core.lora.merged`).
        config: metadata, plain values. Entries that only the training run needs are dropped:
            `must_match`, and paths of its machine.
        dtype: how floating-point weights are stored, a key of `STORED_DTYPES`.
        overwrite: replace a model that is there.

    Returns:
        The folder.

    Raises:
        CheckpointError: another model is there, an array does not fit `dtype`, or the files
            cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save, save_file

    if dtype not in STORED_DTYPES:
        raise CheckpointError(f"dtype: got {dtype!r}; expected one of {', '.join(STORED_DTYPES)}.")
    root = as_path(folder)
    if not overwrite and any((root / name).exists() for name in (CONFIG, WEIGHTS, "checkpoints")):
        raise CheckpointError(
            f"{root}: already holds a model; choose an empty folder or delete what is there."
        )
    arrays = {name: _stored(name, leaf, dtype) for name, leaf in _flat(params).items()}
    text = json.dumps(_portable(config), indent=1) + "\n"
    weights, settings = (root / f".{name}.partial" for name in (WEIGHTS, CONFIG))
    try:
        root.mkdir(parents=True, exist_ok=True)
        if is_local(root):
            _remove(weights)
            weights.touch()
            mode = os.stat(weights).st_mode
            save_file(arrays, weights, metadata={"format": "np"})
            with contextlib.suppress(OSError):  # safetensors makes it readable by its owner only
                os.chmod(weights, mode)
        else:
            weights.write_bytes(save(arrays, metadata={"format": "np"}))
        settings.write_text(text)
        # A folder without its config is no model, so new weights are never read with an old config.
        (root / CONFIG).unlink(missing_ok=True)
        weights.replace(root / WEIGHTS)
        settings.replace(root / CONFIG)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{root}: the model cannot be written ({getattr(error, 'strerror', None) or error}); "
            f"check the path, its permissions and the free space."
        ) from error
    finally:  # of an interrupt, too
        for partial in (weights, settings):
            _remove(partial)
    return root


def load_model_files(folder: str | os.PathLike) -> tuple[dict, dict]:
    """Reads what `save_model` wrote.

    Returns:
        (nested dicts of NumPy arrays, floating-point ones as float32; the config).

    Raises:
        CheckpointError: a file is missing, damaged or of another release.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    config = read_config(folder)
    file = as_path(folder) / WEIGHTS
    try:
        if is_local(file):
            arrays = load_file(file)
        else:
            with tempfile.NamedTemporaryFile() as copy:
                copy.write(file.read_bytes())
                copy.flush()
                arrays = load_file(copy.name)
    except (SafetensorError, OSError, KeyError) as error:
        repair = "copy or convert it again"
        with contextlib.suppress(OSError), file.open("rb") as stream:
            repair = other_kind(stream.read(64)) or repair
        raise CheckpointError(
            f"{file}: damaged or unreadable ({str(error).splitlines()[0]}); {repair}."
        ) from error
    params: dict = {}
    for name, array in arrays.items():
        *above, last = name.split(".")
        part = params
        for key in above:
            part = part.setdefault(key, {})
            if not isinstance(part, dict):
                raise CheckpointError(f"{file}: {name} lies inside another array.")
        if array.dtype.kind not in "iub":
            array = array.astype(np.float32, copy=False)
        part[last] = array
    return params, config


def is_web_page(head: bytes) -> bool:
    """Whether a file is HTML or XML, by its first bytes."""
    return head.lstrip()[:9].lower().startswith(_PAGE_STARTS)


def other_kind(head: bytes) -> str:
    """What a file is and how to get weights instead, by its first bytes; "" if it is no known one.

    Args:
        head: at least 25 bytes of a file that should hold weights.
    """
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: run `git lfs pull` in the clone that it is from"
    if is_web_page(head):
        return "it is a web page: a login or a portal may be in between; get the file itself"
    return ""


def read_config(folder: str | os.PathLike) -> dict:
    """Returns the `config.json` of a model folder; CheckpointError if it is unusable."""
    return read_versioned(as_path(folder) / CONFIG)


def read_versioned(file: AnyPath) -> dict:
    """Reads the metadata of a model or a checkpoint, with renamed keys under their current names.

    Raises:
        CheckpointError: unreadable, or not of this schema.
    """
    try:
        meta = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: unreadable ({error}).") from error
    version = meta.get("schema_version") if isinstance(meta, dict) else None
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{file}: schema version {version!r}, this release reads {SCHEMA_VERSION}; expected a "
            f"model or checkpoint that semsam_jax wrote: convert or train it again."
        )
    return upgrade_meta(meta)


def write_config(folder: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Replaces the `config.json` of a model folder atomically."""
    write_json(as_path(folder) / CONFIG, dict(config))


def write_json(file: AnyPath, content: dict) -> None:
    """Replaces a JSON file atomically; CheckpointError if it cannot be written."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(file)
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be written ({error.strerror or error}); check its permissions, or "
            f"copy the model."
        ) from error
    finally:  # of an interrupt, too
        _remove(partial)


def _portable(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in config.items() if k not in ("must_match", "has_ema")}
    run = {group: values for group, values in (kept.get("config") or {}).items()}
    for group, keys in _PATHS.items():
        if isinstance(run.get(group), Mapping):
            run[group] = {k: "" if k in keys else v for k, v in run[group].items()}
    if run:
        kept["config"] = run
    return {**kept, "schema_version": SCHEMA_VERSION}


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if "." in key:
            raise CheckpointError(f"parameter {above}{key}: a name must not hold a dot.")
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value
    return flat


def _stored(name: str, leaf: Any, dtype: str) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.kind in "iub":
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):
        stored = np.asarray(array, STORED_DTYPES[dtype], order="C")
    if not np.array_equal(np.isfinite(stored), np.isfinite(array)):
        raise CheckpointError(
            f"parameter {name}: its largest value, {np.abs(array).max():.3g}, is too large for "
            f"{dtype}; store the model as float32 or bfloat16."
        )
    return stored


def _remove(file: Any) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError:
        return  # The error that led here says what is wrong with the folder.
