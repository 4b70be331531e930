"""Cache of traced programs: a second process neither traces nor lowers the network again.

JAX's compilation cache is looked up only after a program has been traced and lowered, which for
this network takes half as long as encoding an image. The lowered program (StableHLO, `jax.export`)
is therefore cached too, under a key of everything it depends on: the function and its static
arguments, shapes, versions, the kind of device, and the source of the package.
"""

import functools
import hashlib
import logging
import os
import threading
import zlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
from jax import export

from semsam_jax.core import checkpoint_io, structs
from semsam_jax.core.backend import target_backend
from semsam_jax.core.host_memory import return_freed_memory

FOLDER = "traced"
_PACKAGE = Path(__file__).parents[1]
_programs: dict[tuple, Callable] = {}

for _container in (
    structs.Pyramid,
    structs.Prompts,
    structs.TextTable,
    structs.Predictions,
    structs.GenericPredictions,
):
    export.register_pytree_node_serialization(
        _container,
        serialized_name=f"semsam_jax.{_container.__name__}",
        serialize_auxdata=lambda _: b"",
        deserialize_auxdata=lambda _: (),
    )


def run(function: Callable, static: tuple[Hashable, ...], *args: Any) -> Any:
    """Returns `function(*static, *args)`, using a cached program if there is one.

    Args:
        function: jitted, defined at module level, with `static` as its static arguments.
        static: what the program depends on besides shapes; identified by `repr`.
        args: trees of arrays on one device.
    """
    leaves, tree = jax.tree.flatten(args)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    key = (function, static, tree, shapes, jax.config.jax_default_matmul_precision)
    program = _programs.get(key)
    if program is None:
        program = _programs[key] = _kept(function, static, args, f"{tree} {shapes}")
    return program(*args)


def _kept(function: Callable, static: tuple, args: tuple, shapes: str) -> Callable:
    """The jitted program, read from its file or else traced and written."""
    bound = functools.partial(function, *static)
    arrays = [leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array)]
    is_spread = any(len(leaf.sharding.device_set) > 1 for leaf in arrays)
    if is_spread or not jax.config.jax_enable_compilation_cache:
        return bound
    file = checkpoint_io.cache_dir() / FOLDER / f"{_name(function, static, shapes)}.zlib"
    exported = _read(file)
    if exported is None:
        exported = export.export(jax.jit(bound))(*args)
        _write(file, exported)

    def program(*args: Any) -> Any:
        return exported.call(*args)

    program.__name__ = function.__name__  # the name in profiles and logs
    jitted = jax.jit(program)
    jitted.lower(*args).compile()  # its call finds it; what compiling left is gone before it runs
    return_freed_memory()
    return jitted


def _name(function: Callable, static: tuple, shapes: str) -> str:
    """File name of a program: its name, and a digest of everything it depends on."""
    settings = (
        jax.config.jax_default_matmul_precision,
        jax.config.jax_enable_x64,
        jax.config.jax_default_prng_impl,
        jax.config.jax_numpy_dtype_promotion,
    )
    versions = (jax.__version__, jaxlib.__version__, flax.__version__, _digest_of_package())
    device = (jax.default_backend(), target_backend())
    parts = (function.__module__, function.__name__, static, shapes, settings, versions, device)
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    return f"{function.__name__.strip('_')}-{digest}"


@functools.cache
def _digest_of_package() -> str:
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        digest.update(str(file.relative_to(_PACKAGE)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _read(file: Path) -> export.Exported | None:
    try:
        return export.deserialize(bytearray(zlib.decompress(file.read_bytes())))
    except FileNotFoundError:
        return None
    except (OSError, zlib.error) as error:  # the program is traced again, and the file replaced
        logging.warning("%s: damaged or unreadable (%s); tracing again.", file, error)
        return None


def _write(file: Path, exported: export.Exported) -> None:
    """Writes the file atomically; on failure the next process traces again."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(zlib.compress(exported.serialize()))
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        logging.warning("%s: cannot be written (%s); the next start traces again.", file, error)
