"""Input of a run: datasets, vocabulary, batches on the mesh, evaluation images."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from data_pipelines import sample
from data_pipelines.index import open_index
from data_pipelines.mixture import MixtureRow
from data_pipelines.names import first_spellings
from data_pipelines.pipeline import InputIterator, make_iterator
from data_pipelines.recipe import pipeline_config
from data_pipelines.schema import DATASETS
from data_pipelines.sources import Source, open_source
from data_pipelines.sources.single_dataset import custom_classes, has_split, reader_options
from data_pipelines.sources.subset import Subset, hold_out, images_in_both
from data_pipelines.vocabulary import Vocabulary, build_vocabulary
from semsam_jax.config import RunConfig
from semsam_jax.core.checkpoint_io import cache_dir
from semsam_jax.core.errors import DataError
from semsam_jax.core.structs import Batch, StreamBatch
from semsam_jax.criterion.terms import balanced_weights
from semsam_jax.evals.dataset_samples import EvalDataset, EvalFrame
from semsam_jax.parallel.distributed import processes_on_this_host
from semsam_jax.parallel.mesh import batch_sharding

CUSTOM = "custom"
"""Name of the dataset in the folder `data.custom`."""


class Input:
    """Batches of a run on the mesh; the next one is transferred while a step computes.

    Attributes:
        mesh: where the batches lie.
        tables: mixture text of each stream.
        mixture: the same as plain values, for the checkpoint's meta.
        notes: what a user should know of the datasets, and what is not used; a sentence each.
        class_weights: float32 [v] for `loss.class_balance`, None where all classes are alike.
    """

    class_weights: np.ndarray | None = None

    def __init__(self, rows: InputIterator, mesh: Mesh):
        self._rows, self.mesh = rows, mesh
        self._sharding = batch_sharding(mesh)
        self._hand_over = futures.ThreadPoolExecutor(1)
        self._ahead: futures.Future[StreamBatch] | None = None
        self.notes = rows.notes
        self.mixture = {name: table.to_dict() for name, table in rows.tables.items()}
        self.text = "\n".join(
            f"{name} stream\n{table.format()}" for name, table in rows.tables.items()
        )

    def __next__(self) -> StreamBatch:
        """Returns the next global batch; each process puts its own rows on its devices."""
        batch = (self._ahead or self._hand_over.submit(self._fetch)).result()
        self._ahead = self._hand_over.submit(self._fetch)
        return batch

    def describe(self, step: int, streams: Sequence[str]) -> str:
        """Names the examples of a batch on this process, for error messages."""
        names = self._rows.example_names(step)
        return "; ".join(f"{s} rows: {', '.join(names[s])}" for s in streams if s in names)

    def state(self, step: int) -> dict:
        """The position in which batch number `step` comes next."""
        return json.loads(self._rows.state_for_step(step))

    def restore(self, state: Mapping) -> None:
        """Restores a position."""
        self._forget()
        self._rows.set_state(json.dumps(state).encode())

    def close(self) -> None:
        """Stops the input's threads and processes."""
        self._forget()
        self._hand_over.shutdown()
        self._rows.close()

    def _fetch(self) -> StreamBatch:
        batch = next(self._rows)
        return StreamBatch(
            *(self._on_mesh(batch[name]) if name in batch else None for name in _STREAMS)
        )

    def _forget(self) -> None:
        """Drops the prefetched batch; a broken record in it belongs to no step."""
        if self._ahead is not None and not self._ahead.cancel():
            futures.wait([self._ahead])
        self._ahead = None

    def _on_mesh(self, rows: Mapping[str, np.ndarray]) -> Batch:
        return Batch(
            **{
                key: jax.make_array_from_process_local_data(self._sharding, value)
                for key, value in rows.items()
            }
        )


_STREAMS = ("interactive", "generic")


def used_datasets(run: RunConfig) -> tuple[str, ...]:
    """Names with a share in a stream that has rows, built-in ones in their fixed order."""
    shares = {}
    if run.data.interactive_batch:
        shares |= run.data.datasets
    if run.data.generic_batch:
        shares = {**run.data.generic_datasets, **{k: v for k, v in shares.items() if v > 0}}
    names = [name for name, share in shares.items() if share > 0]
    own = sorted(name for name in names if name not in DATASETS)
    return (*(name for name in DATASETS if name in names), *own)


def dataset_roots(run: RunConfig, names: tuple[str, ...]) -> dict[str, os.PathLike]:
    """Folder of each dataset: ROOT/NAME, or the embedded sample's; ROOT may be a bucket.

    Raises:
        DataError: folders that are missing, all of them at once, or names that the sample lacks.
    """
    if CUSTOM in names and run.data.custom:
        others = tuple(name for name in names if name != CUSTOM)
        return {**dataset_roots(run, others), CUSTOM: epath.Path(run.data.custom)}
    if not run.data.root:
        return sample.folders(names)
    root = epath.Path(run.data.root)
    missing = [name for name in names if not (root / name).is_dir()]
    if missing:
        found = sorted(p.name for p in root.iterdir() if p.is_dir())[:12] if root.is_dir() else []
        raise DataError(
            f"data.root {root}: no folder {', '.join(missing)}; found {', '.join(found) or 'none'}."
            f" Wanted one folder per dataset as data_pipelines/README.md describes; a dataset is "
            f"left out with --config.data.datasets.NAME=0 --config.data.generic_datasets.NAME=0."
        )
    return {name: root / name for name in names}


def open_vocabulary(run: RunConfig, names: tuple[str, ...]) -> Vocabulary:
    """The union vocabulary of the datasets in use; a custom dataset brings its classes."""
    own = tuple(name for name in names if name not in DATASETS)
    roots = dataset_roots(run, own) if own else {}
    classes = {name: custom_classes(name, roots[name], "train") for name in own}
    return build_vocabulary(
        [name for name in names if name in DATASETS],
        extra=classes,
        pascal_parts="full" if run.data.pascal_part_tree else "merged",
    )


def build_input(
    run: RunConfig,
    vocabulary: Vocabulary,
    class_mask: np.ndarray,
    mesh: Mesh,
    held_out: EvalDataset | None = None,
) -> Input:
    """Opens the datasets and starts the input pipeline.

    Args:
        run: the run.
        vocabulary: of `open_vocabulary`.
        class_mask: bool [v], names that have a text embedding.
        mesh: where the batches go.
        held_out: images that are scored, which should not be trained on.
    """
    names = used_datasets(run)
    sources = open_sources(run, names, "train", vocabulary)
    data = dataclasses.asdict(run.data)
    if data["num_workers"]:  # Processes of one host share its cores.
        data["num_workers"] = max(1, data["num_workers"] // processes_on_this_host())
    config = pipeline_config(data, len(vocabulary), total_steps=run.steps)
    rows = make_iterator(
        config,
        sources,
        vocabulary,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        seed=run.seed,
        index_folder=index_cache(),
        class_mask=class_mask,
    )
    rows.start_prefetch()
    data = Input(rows, mesh)
    used = {row.dataset: row for table in rows.tables.values() for row in table.rows}
    if run.loss.class_balance:
        data.class_weights = balanced_weights(
            count_classes(sources, vocabulary), run.loss.class_balance
        )
    custom = [name for name in names if name not in DATASETS]
    notes = [_own_text(used[name], vocabulary) for name in custom]
    notes += [_missing_text(name, sources[name], vocabulary) for name in custom]
    if run.text.source == "table":
        notes += [_unembedded_text(name, vocabulary, class_mask) for name in custom]
    if held_out is not None and held_out.name in custom:
        notes.append(_shared_text(held_out.source, sources[held_out.name]))
    data.notes = [note for note in notes if note] + data.notes
    return data


def count_classes(sources: Mapping[str, Source], vocabulary: Vocabulary) -> np.ndarray:
    """int64 [v]: instances of each class, as the indexes of the datasets tell.

    A part counts for its word and for what it is a part of; classes that are spelled alike count
    for the first of them.
    """
    counts = np.zeros(len(vocabulary), np.int64)
    first = first_spellings(vocabulary.names, vocabulary.groups)
    for name, source in sources.items():
        index = open_index(source, name, cache=index_cache(), num_threads=8)
        number = {
            vocabulary.entry(i).text: int(first[i])
            for span in (vocabulary.part_slice(name), vocabulary.object_slice(name))
            for i in range(span.start, span.stop)
        }
        parts = range(*vocabulary.part_slice(name).indices(len(vocabulary)))
        words = {vocabulary.entry(i).text: int(first[i]) for i in parts}
        for text, (instances, _) in index.report.classes.items():
            whole, is_part, part = text.partition(": ")
            found = [number.get(whole)] + ([words.get(part)] if is_part else [])
            counts[[i for i in found if i is not None]] += instances
    return counts


def _own_text(row: MixtureRow, vocabulary: Vocabulary) -> str:
    """A custom dataset in one line: how many images, which classes."""
    classes = _classes(row.dataset, vocabulary)
    listed = _listed(classes, vocabulary)
    return f"{row.dataset}: {row.examples} training images, {len(classes)} classes: {listed}"


def _missing_text(name: str, source: Source, vocabulary: Vocabulary) -> str:
    """Names the classes of a custom dataset without a training instance; "" if there are none."""
    counts = count_classes({name: source}, vocabulary)
    missing = [i for i in _classes(name, vocabulary) if not counts[i]]
    listed = _listed(missing, vocabulary)
    return f"{name}: no training instance of {listed}, which cannot be learned" if missing else ""


def _unembedded_text(name: str, vocabulary: Vocabulary, class_mask: np.ndarray) -> str:
    """Names the classes of a custom dataset without a text embedding of their own; "" if there are
    none.
    """
    missing = [i for i in _classes(name, vocabulary) if not class_mask[i]]
    if not missing:
        return ""
    return (
        f"{name}: no text embedding of its own for {_listed(missing, vocabulary)}: the table lacks "
        f"the name or reads it as another class. Masks of these classes are trained, but not their "
        f"names. To learn embeddings for them, set --config.text.learn_missing=True."
    )


def _shared_text(scored: Source, trained: Source) -> str:
    """Names images that a custom dataset lists for both training and evaluation; "" for none."""
    both = images_in_both(scored, trained)
    if not both:
        return ""
    listed = ", ".join(map(repr, both[:3])) + (", ..." if len(both) > 3 else "")
    return (
        f"{scored.dataset}: {len(both)} of {len(scored)} validation images are also training "
        f"images, which makes scores too high ({listed}); list each in one split"
    )


def _listed(classes: Sequence[int], vocabulary: Vocabulary) -> str:
    texts = [vocabulary.entry(i).text for i in classes[:20]]
    return ", ".join(texts) + (", ..." if len(classes) > 20 else "")


def _classes(name: str, vocabulary: Vocabulary) -> list[int]:
    """Indices of the classes of a dataset, one of those that are spelled alike."""
    spans = vocabulary.object_slice(name), vocabulary.part_slice(name)
    first = first_spellings(vocabulary.names, vocabulary.groups)
    return [i for span in spans for i in range(span.start, span.stop) if first[i] == i]


def data_name(run: RunConfig) -> str:
    """Name of the training data, for the log and the summary."""
    names = used_datasets(run)
    own = [run.data.custom] if CUSTOM in names and run.data.custom else []
    others = len(names) > len(own)
    return " + ".join([*own, *([run.data.root or "embedded sample"] if others else [])])


def open_sources(
    run: RunConfig, names: tuple[str, ...], split: str, vocabulary: Vocabulary
) -> dict[str, Source]:
    """Opens the readers of some datasets.

    A custom dataset without a split `val` is divided (`subset.hold_out`) where the run evaluates
    on it; without an evaluation all of it is trained on.
    """
    roots = dataset_roots(run, names)
    options = reader_options(
        pascal_part_tree=run.data.pascal_part_tree, ade20k_parts=run.data.ade20k_parts
    )
    if run.data.custom:
        options[CUSTOM] = own_options(run, split)
    sources = {}
    for name, root in roots.items():
        reads = options.get(name, {})
        if not is_held_out(run, name, root):
            sources[name] = _open(name, root, split, vocabulary, reads)
            continue
        # Both splits choose as the evaluation reads, or an image could be in both.
        judges = own_options(run, "val") if name == CUSTOM and run.data.custom else reads
        source = _open(name, root, "train", vocabulary, judges)
        index = open_index(source, name, cache=index_cache(), num_threads=8)
        rest, held = hold_out(source, index.position, "; ".join(index.report.lines()))
        if split == "train" and reads != judges:
            rest = Subset(_open(name, root, "train", vocabulary, reads), rest.positions)
        sources[name] = held if split == "val" else rest
    return sources


def _open(
    name: str, root: os.PathLike, split: str, vocabulary: Vocabulary, options: Mapping
) -> Source:
    return open_source(name, root, split, vocabulary, cache=index_cache(), **options)


def own_options(run: RunConfig, split: str) -> dict[str, object]:
    """Reader options of `data.custom`; evaluation uses masks even if training uses boxes."""
    options: dict[str, object] = {}
    if run.data.custom_images:
        options["images"] = os.path.abspath(run.data.custom_images)
    if run.data.custom_boxes_only and split == "train":
        options["boxes_only"] = True
    return options


def is_held_out(run: RunConfig, name: str, root: os.PathLike) -> bool:
    """Whether the validation images of a dataset are taken from its training images."""
    is_evaluated = run.eval_images > 0 and run.eval_dataset == name
    return name not in DATASETS and is_evaluated and not has_split(root, "val")


def index_cache() -> Path:
    """Cache folder of listings and indexes, so that only the first run scans native layouts."""
    return cache_dir() / "index"


def part_evaluation_data(run: RunConfig, vocabulary: Vocabulary) -> EvalDataset | None:
    """Held-out images of a dataset with annotated parts, for AP of parts within the run."""
    name = run.eval_part_dataset
    if not run.eval_images or not name:
        return None
    vocabulary = _evaluation_vocabulary(run, name, vocabulary)
    source = open_sources(run, (name,), "val", vocabulary)[name]
    frame = EvalFrame(run.data.image_size)
    return EvalDataset.limited(source, frame, run.eval_images, not run.data.root)


def _evaluation_vocabulary(run: RunConfig, name: str, vocabulary: Vocabulary) -> Vocabulary:
    """Vocabulary of the evaluated dataset, which the run need not train on."""
    if name not in DATASETS or name in vocabulary.datasets:
        return vocabulary
    return build_vocabulary([name], pascal_parts="full" if run.data.pascal_part_tree else "merged")


def evaluation_data(run: RunConfig, vocabulary: Vocabulary) -> EvalDataset | None:
    """Held-out images with their human-made masks, letterboxed to the training canvas.

    Raises:
        DataError: too many of them are broken, or none has a mask.
    """
    if not run.eval_images:
        return None
    vocabulary = _evaluation_vocabulary(run, run.eval_dataset, vocabulary)
    source = open_sources(run, (run.eval_dataset,), "val", vocabulary)[run.eval_dataset]
    is_own = run.eval_dataset == CUSTOM and bool(run.data.custom)
    is_sample = not run.data.root and not is_own
    frame = EvalFrame(run.data.image_size)
    data, report = EvalDataset.limited(source, frame, run.eval_images, is_sample).surveyed()
    if not report.instances or not data.num_masks:
        pseudo = f" (all {data.num_pseudo} are machine-made)" if data.num_pseudo else ""
        raise DataError(
            f"{run.eval_dataset} val: none of the {len(source)} images has an annotated mask to "
            f"score{pseudo}; annotate some, or switch the evaluation off with "
            "--config.eval_images=0 --config.keep_best=False"
        )
    if data.num_pseudo:
        note = f"{data.name}: machine-made masks, which are not scored: {data.num_pseudo}"
        data = dataclasses.replace(data, notes=(*data.notes, note))
    return data
