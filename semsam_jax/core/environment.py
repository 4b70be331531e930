"""The command `env`: versions and devices, for bug reports."""

import argparse
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import semsam_jax

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "safetensors",
    "grain",
    "tensorflow-datasets",
    "fastapi",
)
_PREFIXES = ("SEMSAM_", "JAX_", "XLA_", "TPU_", "CUDA_VISIBLE_DEVICES")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `env`."""
    commands.add_parser(
        "env",
        help="print versions and devices for bug reports",
        description="Prints versions, devices and settings; paste it into a bug report.",
    )


def run(args: argparse.Namespace) -> None:
    """Prints one line per fact."""
    for name, value in facts():
        print(f"{name:24} {value}")


def facts() -> list[tuple[str, str]]:
    """Facts for a bug report, in order."""
    # Collected before JAX is imported, which sets some itself.
    settings = [(k, v) for k, v in sorted(os.environ.items()) if v and k.startswith(_PREFIXES)]
    from semsam_jax.core import checkpoint_io

    found = [
        ("semsam_jax", f"{semsam_jax.__version__} in {Path(semsam_jax.__file__).parent}"),
        ("python", f"{platform.python_version()} in {sys.prefix}"),
        ("platform", platform.platform()),
        ("cores", str(os.cpu_count())),
    ]
    found += [(name, _version(name)) for name in _PACKAGES]
    found.append(("devices", _devices()))
    found.append(("cache folder", str(checkpoint_io.cache_dir())))
    return found + settings


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        return f"none: {' '.join(str(error).split())}"
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
