"""python -m semsam_jax.main --config=configs/joint.py --workdir=DIR

Flags only; the run itself is `train.loop.train`. Every error that a user can repair is one
line and exit code 2; `--traceback` shows where it came from.
"""

import sys
import traceback
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from semsam_jax.core.errors import ConfigError, SemSamError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration, configs/NAME.py[:arg].")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an existing run is resumed.")
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error came from.")


def main(argv: list[str]) -> int:
    """Runs the training that the flags describe; returns the exit code."""
    if len(argv) > 1:
        raise ConfigError(f"command line: unexpected {argv[1]!r}; options start with --.")
    for name in ("config", "workdir"):
        if flags.FLAGS[name].value is None:
            raise ConfigError(
                f"--{name} is missing; for example --config=configs/joint.py --workdir=runs/first"
            )
    from semsam_jax import config
    from semsam_jax.core.compilation import use_compilation_cache
    from semsam_jax.parallel import distributed

    run = config.build(_CONFIG.value)
    distributed.initialize()
    use_compilation_cache()

    from semsam_jax.train.loop import train

    train(run, Path(_WORKDIR.value))
    return 0


def run_with_errors(argv: list[str]) -> int:
    """Turns errors that a user can repair into one line and exit code 2."""
    try:
        return main(argv)
    except SemSamError as error:
        if _TRACEBACK.value:
            traceback.print_exc()
        return _fail(error)


def parse_or_exit(argv: list[str]) -> list[str]:
    """Parses the flags; exits with code 2 and one line if they are wrong."""
    try:
        return _parse(argv)
    except ConfigError as error:
        sys.exit(_fail(error))


def _fail(error: SemSamError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; a wrong name or an unknown config key is a ConfigError."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise ConfigError(f"command line: {error}") from error
    except (KeyError, AttributeError) as error:
        raise ConfigError(f"--config: no such key: {str(error).strip(chr(34))}") from error
    except (OSError, ImportError) as error:
        raise ConfigError(
            f"--config: cannot be read ({error}); run from the project's root, or give the path "
            f"of a config file."
        ) from error


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(run_with_errors, flags_parser=parse_or_exit)
