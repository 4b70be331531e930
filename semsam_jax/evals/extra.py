"""Imports the suites, whose libraries (AP matching, plots, superpixels) are an extra of the
package.
"""

import importlib
from types import ModuleType

from semsam_jax.core.errors import ConfigError

_EXTRA = ("faster_coco_eval", "matplotlib", "skimage")


def load_suites() -> ModuleType:
    """Imports `evals.suites`.

    Raises:
        ConfigError: the extra is not installed.
    """
    try:
        return importlib.import_module("semsam_jax.evals.suites")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise ConfigError(
            f"evaluate: {error.name} is not installed; run `pip install 'semsam-jax[eval]'`."
        ) from error
