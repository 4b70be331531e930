"""Class names for a training step: a table, frozen or learned in part, or token ids to encode."""

from collections.abc import Hashable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.names import first_spellings
from semsam_jax.config import RunConfig
from semsam_jax.core.errors import ConfigError
from semsam_jax.core.structs import TextTable
from semsam_jax.models.presets import ModelConfig
from semsam_jax.parallel.mesh import replicated
from semsam_jax.text.tables import TextEmbeddings, normalise
from semsam_jax.text.templates import training_prompts, unit
from semsam_jax.text.tokenizer import Tokenizer
from semsam_jax.train.step import TextInputs

_INITIAL_SPREAD = 0.7


class TextSource:
    """Returns `TextInputs` for each step.

    Attributes:
        class_mask: bool [v], names that have an embedding of their own; the others are never
            trained.
        meta: metadata of the text source.
    """

    def __init__(
        self,
        run: RunConfig,
        config: ModelConfig,
        names: tuple[str, ...],
        num_objects: int,
        mesh: Mesh,
        learned: Sequence[str] = (),
        groups: Sequence[Hashable] | None = None,
    ):
        groups = range(len(names)) if groups is None else groups
        self._names, self._seed = names, run.seed
        self._mesh = mesh
        self.meta = {"source": run.text.source, "table": run.text.table}
        if learned:
            self.meta["learned"] = list(learned)
        if run.text.source == "table":
            self._text, self.class_mask = _table_text(
                run, config, names, num_objects, mesh, learned, groups
            )
        elif run.text.source == "none":
            self._text, self.class_mask = TextInputs(), np.zeros(len(names), bool)
        else:
            self._tokenizer = Tokenizer(config.text.context_length)
            self._text, self.class_mask = None, np.ones(len(names), bool)
        # Names that are spelled alike count as the first of them (`data_pipelines.names`).
        self.class_mask &= first_spellings(names, groups) == np.arange(len(names))

    def inputs(self, step: int) -> TextInputs:
        """Text of one step; with an encoder, one random template per class and step."""
        if self._text is not None:
            return self._text
        rng = np.random.default_rng((self._seed, step))
        ids = self._tokenizer(training_prompts(self._names, rng))
        return TextInputs(token_ids=_everywhere(ids.astype(np.int32), self._mesh))


def build_text(
    run: RunConfig,
    config: ModelConfig,
    names: tuple[str, ...],
    num_objects: int,
    mesh: Mesh,
    learned: Sequence[str] = (),
    groups: Sequence[Hashable] | None = None,
) -> TextSource:
    """Builds the text source that the config names; see `config.TextChoice`.

    Args:
        run: the run.
        config: sizes of its network.
        names: the vocabulary, objects first.
        num_objects: how many of them are objects.
        mesh: where the inputs go.
        learned: what `learned_names` gives.
        groups: of each name; no two names of a group get the same embedding
            (`Vocabulary.groups`). By default any two names may.
    """
    return TextSource(run, config, names, num_objects, mesh, learned, groups)


def learned_names(
    run: RunConfig,
    names: Sequence[str],
    start: Mapping | None,
    groups: Sequence[Hashable] | None = None,
) -> tuple[str, ...]:
    """Names whose embedding is a parameter of the run's model, in the order of their rows.

    Args:
        run: the run.
        names: its vocabulary.
        start: meta of the checkpoint that it resumes or starts from, or None.
        groups: as for `build_text`.
    """
    if run.text.source != "table":
        return ()
    known = taught_names(run, start)
    if not run.text.learn_missing:
        return known
    table = TextEmbeddings.load(run.text.table or None)
    table = table.with_learned(known, np.zeros((len(known), table.dim)))
    if groups is not None:  # Of names that are spelled alike one is learned.
        first = dict.fromkeys(first_spellings(names, groups).tolist())
        names, groups = [names[i] for i in first], [groups[i] for i in first]
    missing = [name for name, row in zip(names, table.find(names), strict=True) if row < 0]
    # Of "whole:part" the part is the name, as for names that the table has.
    new = tuple(dict.fromkeys(normalise(name.rsplit(":", 1)[-1]) for name in missing))
    if groups is not None:
        # Names that would still be read as another name of their group are learned in full.
        table = table.with_learned(new, np.zeros((len(new), table.dim)))
        own = table.find_own(names, groups)
        shared = [normalise(name) for name, row in zip(names, own, strict=True) if row < 0]
        new = tuple(dict.fromkeys((*new, *shared)))
    return (*known, *new)


def taught_names(run: RunConfig, meta: Mapping | None) -> tuple[str, ...]:
    """Names that a checkpoint has learned next to the table that the run uses.

    Embeddings learned next to another table mean nothing among those of this one.
    """
    text = (meta or {}).get("text") or {}
    is_same = (text.get("table") or "") == run.text.table
    return tuple(text.get("learned") or ()) if is_same else ()


def initial_rows(
    run: RunConfig, names: Sequence[str], meta: Mapping | None, params: Mapping | None
) -> np.ndarray:
    """Where learned embeddings start: as a checkpoint has them, others near the mean name.

    All names of a text space share a direction; a row at random in it is none of them.

    Args:
        run: the run.
        names: of the rows.
        meta: of the checkpoint that the run starts from, or None.
        params: its parameters.

    Returns:
        float32 [len(names), d] unit rows.
    """
    table = TextEmbeddings.load(run.text.table or None)
    rng = np.random.default_rng(run.seed)
    mean = np.mean([unit(row) for row in np.asarray(table.rows, np.float32)], axis=0)
    noise = rng.normal(size=(len(names), table.dim)) * table.dim**-0.5
    rows = unit(mean) + _INITIAL_SPREAD * noise
    known = taught_names(run, meta)
    for row, name in enumerate(names):
        if name in known:
            rows[row] = params["learned_names"]["rows"][known.index(name)]
    return np.stack([unit(row) for row in rows]).astype(np.float32)


def _table_text(
    run: RunConfig,
    config: ModelConfig,
    names: tuple[str, ...],
    num_objects: int,
    mesh: Mesh,
    learned: Sequence[str],
    groups: Sequence[Hashable],
) -> tuple[TextInputs, np.ndarray]:
    stored = TextEmbeddings.load(run.text.table or None)
    if stored.dim != config.decoder.text_dim:
        raise ConfigError(
            f"text.table: embeddings have {stored.dim} dimensions, preset "
            f"{run.model.preset!r} wants {config.decoder.text_dim}; choose a table of that size "
            f"or text.source=encoder."
        )
    table = stored.with_learned(learned, np.zeros((len(learned), stored.dim)))
    index, (embeddings, found) = table.find_own(names, groups), table.lookup(names, groups)
    is_learned = index >= len(stored.names)
    # A name without an embedding is never scored, but a denoising query may start from it: the mean
    # embedding avoids zero vectors, whose gradients explode in layer norms.
    is_stored = found & ~is_learned
    mean = embeddings[is_stored].mean(0) if is_stored.any() else np.ones(stored.dim, np.float32)
    embeddings = np.where(is_stored[:, None], embeddings, mean / np.linalg.norm(mean))
    rows = np.asarray(embeddings, np.float32)
    text = TextInputs(
        table=TextTable(*(_everywhere(x, mesh) for x in np.split(rows, [num_objects])))
    )
    if learned:
        places = np.where(is_learned, index - len(stored.names), -1).astype(np.int32)
        text = text.replace(learned=_everywhere(places, mesh))
    return text, np.asarray(found)


def _everywhere(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """The whole array on every device.

    `jax.device_put` would compare the arrays of all processes first, which waits for their devices.
    """
    return jax.make_array_from_callback(array.shape, replicated(mesh), lambda index: array[index])
