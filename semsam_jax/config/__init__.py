"""Configuration: a ConfigDict in, checked frozen dataclasses out.

`main` and the command line call `build`; nothing below them sees a ConfigDict. Every key
of a config file is documented in `fields`; an unknown key is an error that names the nearest one.
"""

from semsam_jax.config.checks import check_batch
from semsam_jax.config.fields import (
    CHECKPOINT,
    PROMPT_KINDS,
    RANDOM,
    REQUIRED,
    DataChoice,
    LossChoice,
    ModelChoice,
    OptimizerChoice,
    RefitChoice,
    RunConfig,
    TextChoice,
    model_config,
)
from semsam_jax.config.parse import (
    build,
    build_evaluation,
    inherit_from_checkpoint,
    needs_checkpoint,
)

__all__ = [
    "CHECKPOINT",
    "PROMPT_KINDS",
    "RANDOM",
    "REQUIRED",
    "DataChoice",
    "LossChoice",
    "ModelChoice",
    "OptimizerChoice",
    "RefitChoice",
    "RunConfig",
    "TextChoice",
    "build",
    "build_evaluation",
    "check_batch",
    "inherit_from_checkpoint",
    "model_config",
    "needs_checkpoint",
]
