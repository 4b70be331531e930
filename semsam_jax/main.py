"""Trains a model: semsam train --config=configs/joint.py --workdir=runs/first

Running the same command again resumes the run; Ctrl-C saves before it stops. Every configuration
key is an option, such as --config.steps=2000 or --config.data.datasets.sa1b=2:
semsam_jax/config/fields.py documents all keys, configs/README.md lists the configurations.
--data.root=DIR, the folder of all datasets, is short for --config.data.root. Errors that you can
fix are printed in one line with exit code 2. `python -m semsam_jax.main` is the same command.
"""

import errno
import sys
import traceback
from typing import NoReturn

try:
    from absl import app, flags, logging
    from ml_collections import config_flags
except ModuleNotFoundError as error:
    if __name__ != "__main__":  # `semsam train` reports it itself
        raise
    print(
        f"semsam train: {error.name} is not installed; run `pip install 'semsam-jax[train]'`.",
        file=sys.stderr,
    )
    sys.exit(2)

from semsam_jax.core import config_files, console
from semsam_jax.core.ending import run_command
from semsam_jax.core.errors import ConfigError, SemSamError, TrainingError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration, configs/NAME.py[:arg].")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an existing run is resumed.")
_COMPILE_ONLY = flags.DEFINE_bool(
    "compile_only", False, "Compile for --topology without a TPU, print whether it fits, and exit."
)
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "TPU slice for --compile_only.")
_PROFILE = flags.DEFINE_string(
    "profile", None, "FIRST:STOP, steps to record for the TensorBoard profiler."
)
_ALLOW_CHANGE = flags.DEFINE_list(
    "allow_change",
    [],
    "Keys in which a resumed run may differ from its checkpoint, such as "
    "optimizer.learning_rate,seed,steps.",
)
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the full traceback of an error.")
_VERBOSE = flags.DEFINE_bool("verbose", False, "Also print log messages.")
_QUIET = flags.DEFINE_bool("quiet", False, "Print errors only.")
_FLAGS = (
    *(_CONFIG, _WORKDIR, _ALLOW_CHANGE, _COMPILE_ONLY, _TOPOLOGY, _PROFILE),
    *(_VERBOSE, _QUIET, _TRACEBACK),
)

_DISK_TROUBLE = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main(argv: list[str]) -> int:
    """Runs the training that the flags describe; returns the exit code."""
    if len(argv) > 1:
        raise ConfigError(f"command line: unexpected {argv[1]!r}; options start with --.")
    for name in ("config",) if _COMPILE_ONLY.value else ("config", "workdir"):
        if flags.FLAGS[name].value is None:
            raise ConfigError(
                f"--{name} is missing; for example --config=configs/joint.py --workdir=runs/first"
            )
    from semsam_jax import config
    from semsam_jax.core.compilation import use_compilation_cache
    from semsam_jax.parallel import distributed

    if "evaluate" in _CONFIG.value:
        from semsam_jax.evals.cli import run_options

        return run_options(config.build_evaluation(_CONFIG.value, _WORKDIR.value))
    run = config.build(_CONFIG.value)
    if _COMPILE_ONLY.value:
        from semsam_jax.train.compile_only import compile_only

        compile_only(run, _TOPOLOGY.value, _WORKDIR.value)
        return 0
    window = _profile_window()
    distributed.initialize()
    use_compilation_cache()

    from semsam_jax.train.loop import train

    train(run, _WORKDIR.value, profile=window, allow_change=_ALLOW_CHANGE.value)
    return 0


def _profile_window() -> tuple[int, int] | None:
    """Parses the steps of --profile."""
    if _PROFILE.value is None:
        return None
    first, _, stop = _PROFILE.value.partition(":")
    if not (first.isdigit() and stop.isdigit() and int(first) < int(stop)):
        raise ConfigError(f"--profile: got {_PROFILE.value!r}, expected FIRST:STOP, such as 10:13.")
    return int(first), int(stop)


def run_with_errors(argv: list[str]) -> int:
    """Turns errors that a user can fix into one line and exit code 2."""
    verbose, quiet = (flags.FLAGS[one.name].value for one in (_VERBOSE, _QUIET))
    try:
        with console.verbosity(verbose, quiet):
            if verbose or quiet:
                logging.set_verbosity(logging.INFO if verbose else logging.ERROR)
            return main(argv)
    except SemSamError as error:
        if _TRACEBACK.value:
            traceback.print_exc()
        return _fail(error)
    except ImportError as error:
        if error.name is not None:
            raise
        return _fail(ConfigError(str(error)))  # a bucket's file system says what to install
    except KeyboardInterrupt:
        print(
            "semsam train: interrupted; the same command resumes from the newest checkpoint",
            file=sys.stderr,
        )
        return 130
    except OSError as error:
        if error.errno not in _DISK_TROUBLE:
            raise
        if _TRACEBACK.value:
            traceback.print_exc()
        return _fail(
            TrainingError(
                f"{error.filename or 'workdir'}: cannot be written ({error.strerror}); free some "
                f"space or repair the disk; the same command resumes from the newest checkpoint."
            )
        )


def parse_or_exit(argv: list[str]) -> list[str]:
    """Parses the flags; exits with code 2 and one line if they are wrong."""
    try:
        return _parse(argv)
    except ConfigError as error:
        sys.exit(_fail(error))


def _fail(error: SemSamError) -> int:
    print(f"semsam train: {error}", file=sys.stderr)
    return 2


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; a wrong name or an unknown config key is a ConfigError."""
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(_help())
        sys.exit(0)
    argv = [argv[0], *config_files.expand(argv[1:])]
    sys.argv = argv  # where ml_collections looks for the keys that are set
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise ConfigError(f"command line: {error}") from error
    except (KeyError, AttributeError) as error:
        raise ConfigError(f"--config: no such key: {str(error).strip(chr(34))}") from error
    except (OSError, ImportError) as error:
        raise ConfigError(
            f"--config: cannot be read ({error}); give one of configs/NAME.py that come with "
            f"this package, or the path of a config file."
        ) from error


def _help() -> str:
    lines = [__doc__]
    for holder in _FLAGS:
        prefix = "[no]" if flags.FLAGS[holder.name].boolean else ""
        lines.append(f"  --{prefix}{holder.name}: {flags.FLAGS[holder.name].help}")
    return "\n".join(lines)


def run_command_line(argv: list[str]) -> NoReturn:
    """Runs a command line, `argv[0]` being the command's name, and ends the process."""
    logging.set_verbosity(logging.WARNING)
    app.run(run_with_errors, argv=argv, flags_parser=parse_or_exit)


if __name__ == "__main__":
    run_command(lambda: run_command_line(sys.argv))
