"""Class names for a training step: a frozen table, or token ids to encode."""

import jax
import numpy as np
from jax.sharding import Mesh

from semsam_jax.config import RunConfig
from semsam_jax.core.errors import ConfigError
from semsam_jax.core.structs import TextTable
from semsam_jax.models.presets import ModelConfig
from semsam_jax.parallel.mesh import replicated
from semsam_jax.text.tables import TextEmbeddings
from semsam_jax.text.templates import training_prompts
from semsam_jax.text.tokenizer import Tokenizer
from semsam_jax.train.step import TextInputs


class TextSource:
    """Returns `TextInputs` for each step.

    Attributes:
        class_mask: bool [v], names that have an embedding; the others are never trained.
        meta: metadata of the text source.
    """

    def __init__(
        self, run: RunConfig, config: ModelConfig, names: tuple[str, ...], num_objects, mesh
    ):
        self._names, self._seed = names, run.seed
        self._mesh = mesh
        self.meta = {"source": run.text.source, "table": run.text.table}
        if run.text.source == "table":
            self._text, self.class_mask = _table_text(run, config, names, num_objects, mesh)
        elif run.text.source == "none":
            self._text, self.class_mask = TextInputs(), np.zeros(len(names), bool)
        else:
            self._tokenizer = Tokenizer(config.text.context_length)
            self._text, self.class_mask = None, np.ones(len(names), bool)

    def inputs(self, step: int) -> TextInputs:
        """Text of one step; with an encoder, one random template per class and step."""
        if self._text is not None:
            return self._text
        rng = np.random.default_rng((self._seed, step))
        ids = self._tokenizer(training_prompts(self._names, rng))
        return TextInputs(token_ids=_everywhere(ids.astype(np.int32), self._mesh))


def build_text(
    run: RunConfig, config: ModelConfig, names: tuple[str, ...], num_objects: int, mesh: Mesh
) -> TextSource:
    """Builds the text source that the config names; see `config.TextChoice`."""
    return TextSource(run, config, names, num_objects, mesh)


def _table_text(
    run: RunConfig, config: ModelConfig, names: tuple[str, ...], num_objects: int, mesh: Mesh
) -> tuple[TextInputs, np.ndarray]:
    table = TextEmbeddings.load(run.text.table or None)
    embeddings, found = table.lookup(names)
    if embeddings.shape[1] != config.decoder.text_dim:
        raise ConfigError(
            f"text.table: embeddings have {embeddings.shape[1]} dimensions, preset "
            f"{run.model.preset!r} wants {config.decoder.text_dim}; choose a table of that size "
            f"or text.source=encoder."
        )
    # A name without an embedding is never scored, but a denoising query may start from it: the mean
    # embedding avoids zero vectors, whose gradients explode in layer norms.
    mean = embeddings[found].mean(0) if found.any() else np.ones(embeddings.shape[1], np.float32)
    embeddings = np.where(found[:, None], embeddings, mean / np.linalg.norm(mean))
    unit = np.asarray(embeddings, np.float32)
    table = TextTable(*(_everywhere(part, mesh) for part in np.split(unit, [num_objects])))
    return TextInputs(table=table), np.asarray(found)


def _everywhere(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """The whole array on every device.

    `jax.device_put` would compare the arrays of all processes first, which waits for their devices.
    """
    return jax.make_array_from_callback(array.shape, replicated(mesh), lambda index: array[index])
