"""TFDS builder of the records: any dataset, one split, any number of machines.

Unlike TFDS' own builders it can be resumed: shards are written to their final place and each is
completed on its own (`shards`), and TFDS' description of the dataset is written at the end. The
result is an ordinary TFDS dataset:

    tfds.builder_from_directory("OUT/coco/train/1.0.0").as_data_source("train")
"""

import functools
import json
import os
import pathlib
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf import json_format
from tensorflow_datasets.core import dataset_builder, splits
from tqdm import tqdm

from data_pipelines.builders import shards
from data_pipelines.builders.codec import features
from data_pipelines.builders.shards import ShardPlan
from data_pipelines.findings import Findings
from data_pipelines.index.build import save_index
from data_pipelines.index.files import write_json, write_whole
from data_pipelines.index.scan import (
    IndexReport,
    check_report,
    is_too_broken,
    merge_findings,
    with_views,
)
from data_pipelines.sources import records
from data_pipelines.sources.single_dataset import open_single_dataset
from semsam_jax.core.errors import ConfigError, DataError

_POLL_SEC = 2.0


class RecordsBuilder(dataset_builder.FileReaderBuilder, skip_registration=True):
    """Writes one split of a dataset as ArrayRecord shards.

    Args:
        dataset: name out of `schema.DATASETS`, or of a custom dataset.
        root: folder in the native layout, the same on every machine that takes part.
        split: which part of it; it is the name of the TFDS config, too.
        data_dir: folder or bucket (`gs://...`); the records go to `dataset/split/VERSION` in it.
        options: of the reader.
        shard_records: images per shard; each is written as it is read.
        max_broken_share: broken records allowed, as a share of all; one always is.
        num_threads: reading threads where no Beam runner is given.

    Raises:
        DataError: the folder has another layout, or `data_dir` holds another build.
    """

    VERSION = tfds.core.Version(records.VERSION)

    def __init__(
        self,
        dataset: str,
        root: str | os.PathLike,
        split: str,
        data_dir: str | os.PathLike,
        *,
        options: dict | None = None,
        shard_records: int = 1000,
        max_broken_share: float = 0.01,
        num_threads: int = 4,
    ):
        self._source = open_single_dataset(dataset, root, split, options or {}, is_native=True)
        self.name = dataset
        config = tfds.core.BuilderConfig(name=split, version=records.VERSION)
        out = os.fspath(data_dir)
        if "://" not in out:  # workers may start in another folder
            out = os.path.abspath(os.path.expanduser(out))
        try:  # TFDS reads the description that an earlier build has left
            super().__init__(data_dir=out, config=config, file_format="array_record")
        except (json_format.ParseError, UnicodeDecodeError) as error:
            file = epath.Path(out) / dataset / split / records.VERSION / "dataset_info.json"
            raise DataError(
                f"{file}: damaged ({str(error).splitlines()[0]}); delete it and build again, "
                "finished files are kept"
            ) from error
        if pathlib.Path(root).resolve() in (self.data_path, *self.data_path.parents):
            raise DataError(
                f"{dataset}: --out {out} would put records inside the data's own folder "
                f"{root}; give another folder"
            )
        self._max_broken_share = max_broken_share
        self._num_threads = num_threads
        self.plan = ShardPlan(
            dataset=dataset,
            root=str(pathlib.Path(root).resolve()),
            split=split,
            options=json.dumps(options or {}, sort_keys=True),
            folder=os.fspath(self.data_path),
            num_records=len(self._source),
            num_shards=max(1, -(-len(self._source) // shard_records)),
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=features(),
            description=f"{self.name}: images as stored, masks as compressed COCO RLE.",
        )

    def download_and_prepare(
        self,
        *,
        download_config: tfds.download.DownloadConfig | None = None,
        verify: bool = False,
        retry_broken: bool = False,
    ) -> IndexReport:
        """Builds missing shards and writes the description.

        Args:
            download_config: names a Beam runner and its options; None works in this process.
            verify: read existing shards and rebuild those with a wrong hash.
            retry_broken: rebuild shards with broken records, after a repair.

        Returns:
            The findings, which are also written to `index/report.json`.

        Raises:
            DataError: the folder holds another build, too many records are broken, or nothing is
                usable. Finished shards are kept.
        """
        shards.forget_sources()
        self._claim_folder()
        found = [shards.read_receipt(self.plan, i) for i in range(self.plan.num_shards)]
        found = [r if r and shards.is_current(self.plan, r) else None for r in found]
        if verify:
            found = [r if r and shards.is_intact(self.plan, r) else None for r in found]
        if retry_broken:
            found = [r if r and not shards.has_broken(r) else None for r in found]
        missing = [number for number, receipt in enumerate(found) if receipt is None]
        if missing:
            (epath.Path(self.plan.folder) / records.MANIFEST).unlink(missing_ok=True)
            for number in missing:
                self.plan.receipt(number).unlink(missing_ok=True)
            self._build(missing, download_config or tfds.download.DownloadConfig())
        return self._describe()

    def _download_and_prepare(self, dl_manager: object, download_config: object = None) -> None:
        raise AssertionError("download_and_prepare does it all")

    def _claim_folder(self) -> None:
        """Writes the description of the build, or compares it with the existing one."""
        folder = epath.Path(self.plan.folder)
        own = {
            "format": records.FORMAT,
            "dataset": self.plan.dataset,
            "split": self.plan.split,
            "options": self._source.options,
            "records": self.plan.num_records,
            "shards": self.plan.num_shards,
            "has_masks": self._source.has_masks,
            "classes": records.class_names(self._source.vocabulary, self.plan.dataset),
        }
        if self._source.is_federated and self.plan.dataset not in records.FEDERATED:
            own["is_federated"] = True
        file = folder / records.CLAIM
        if not file.exists():
            (folder / "receipts").mkdir(parents=True, exist_ok=True)
            write_json(file, own)
            return
        other = records.read_description(file)
        wrong = [key for key in own if own[key] != other.get(key)]
        if wrong:
            listed = "; ".join(
                f"{key} is {_short(other.get(key))} there, {_short(own[key])} here" for key in wrong
            )
            raise DataError(
                f"{folder}: holds another build: {listed}. Continue with those settings, "
                "give another --out, or delete the folder"
            )

    def _build(self, missing: Sequence[int], config: tfds.download.DownloadConfig) -> None:
        sizes = [len(self.plan.span(number)) for number in range(self.plan.num_shards)]
        done = sum(sizes) - sum(sizes[number] for number in missing)
        bar = tqdm(
            desc=f"{self.plan.dataset} {self.plan.split}", total=sum(sizes), initial=done,
            unit=" images", smoothing=0.05, disable=None,
        )  # fmt: skip
        with bar:
            if config.beam_runner is None:
                self._build_here(missing, bar)
                return
            with self._watched(missing, bar):
                _run_beam(self.plan, missing, config)

    def _build_here(self, missing: Sequence[int], bar: tqdm) -> None:
        found = []
        for number in missing:
            found.append(
                shards.write_shard(
                    self.plan, number, num_threads=self._num_threads, progress=bar.update
                )
            )
            report = self._report(found)
            if is_too_broken(report, self._max_broken_share):  # no need to wait for the end
                check_report(report, self._max_broken_share)

    @contextmanager
    def _watched(self, missing: Sequence[int], bar: tqdm) -> Iterator[None]:
        """Advances the progress bar as receipts appear, whichever worker writes them."""
        waiting, is_over = set(missing), threading.Event()

        def look() -> None:
            for number in sorted(waiting):
                if self.plan.receipt(number).exists():
                    waiting.discard(number)
                    bar.update(len(self.plan.span(number)))

        def watch() -> None:
            while not is_over.wait(_POLL_SEC):
                look()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()
            look()

    def _describe(self) -> IndexReport:
        """Writes index, TFDS' description and, last, the manifest that makes it a data set."""
        plan, folder = self.plan, epath.Path(self.plan.folder)
        receipts = [shards.read_receipt(plan, number) for number in range(plan.num_shards)]
        absent = [plan.file(i).name for i, receipt in enumerate(receipts) if receipt is None]
        if absent:
            raise DataError(
                f"{folder}: {len(absent)} of {plan.num_shards} shards are not whole: {absent[:5]}; "
                "run the build again"
            )
        counts = {
            key: np.concatenate([np.asarray(r[key], np.int32) for r in receipts])
            for key in _COLUMNS
        }
        arrays = with_views(
            {"position": np.arange(len(counts["num_instances"]), dtype=np.int64)}
            | {key: counts[key].astype(dtype) for key, dtype in _COLUMNS.items()}
        )
        report = self._report(receipts)
        save_index(folder / records.INDEX, arrays, report)
        check_report(report, self._max_broken_share)
        template = self._get_filename_template(split_name=plan.split)
        sizes = [receipt["examples"] for receipt in receipts]
        num_bytes = sum(receipt["bytes"] for receipt in receipts)
        info = splits.SplitInfo(
            name=plan.split, shard_lengths=sizes, num_bytes=num_bytes, filename_template=template
        )
        self.info.set_splits(splits.SplitDict([info]))
        self._write_info()
        listed = [
            {key: r[key] for key in ("file", "bytes", "sha256", "examples")} for r in receipts
        ]
        claim = records.read_description(folder / records.CLAIM)
        write_json(folder / records.MANIFEST, claim | {"files": listed})
        shards.remove_scratch(plan.folder)
        return report

    def _write_info(self) -> None:
        """Writes TFDS' description, each of its files whole or not at all."""
        with tempfile.TemporaryDirectory() as scratch:
            self.info.write_to_directory(epath.Path(scratch))
            for file in sorted(pathlib.Path(scratch).iterdir()):
                content = file.read_bytes()
                # Where TFDS has read an earlier description, it writes empty metadata.
                if content != b"{}":
                    write_whole(self.data_path / file.name, lambda out, c=content: out.write(c))

    def _report(self, receipts: Sequence[dict]) -> IndexReport:
        dropped, named = merge_findings(receipts)
        findings = Findings()
        findings.add(self._source.unused)
        for receipt in receipts:
            findings.merge(receipt)
        return IndexReport(
            dataset=self.plan.dataset,
            records=self.plan.num_records,
            examples=sum(receipt["examples"] for receipt in receipts),
            instances=sum(sum(receipt["num_instances"]) for receipt in receipts),
            dropped=dropped,
            named=named,
            **findings.to_dict(),
        )


_COLUMNS = {"num_instances": np.int32, "has_object": np.bool_, "has_part": np.bool_}


def _run_beam(
    plan: ShardPlan, missing: Sequence[int], config: tfds.download.DownloadConfig
) -> None:
    """Spreads the shards over the workers of a Beam runner.

    One `Create` of shard numbers, whatever their count: TFDS' own pipeline has two steps for
    each shard, more than Dataflow takes for eleven thousand.
    """
    import apache_beam as beam

    try:
        pipeline = beam.Pipeline(runner=config.beam_runner, options=config.beam_options)
    except ValueError as error:
        raise ConfigError(f"build: --runner={config.beam_runner}: {error}") from error
    with pipeline:
        _ = (
            pipeline
            | "Shards" >> beam.Create(list(missing))
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.Map(functools.partial(_write_in_worker, plan))
        )


def _write_in_worker(plan: ShardPlan, shard: int) -> int:
    """Writes a shard unless an earlier attempt of the same worker pool has finished it."""
    if shards.read_receipt(plan, shard) is None:
        shards.write_shard(plan, shard)
    return shard


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def beam_config(runner: str | None, options: str) -> tfds.download.DownloadConfig:
    """TFDS' settings for a Beam runner by name.

    Args:
        runner: name, or None to build without Beam.
        options: Beam's pipeline options, `name=value` or `name`, separated by commas.

    Raises:
        ConfigError: Beam is not installed, or options come without a runner.
    """
    if runner is None:
        if options:
            raise ConfigError(f"build: Beam options {options!r} without a runner; add --runner")
        return tfds.download.DownloadConfig()
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ConfigError(
            f"build: --runner={runner} needs Apache Beam: pip install 'semsam-jax[build]'"
        ) from error
    flags = [f"--{option}" for option in options.split(",") if option]
    return tfds.download.DownloadConfig(
        beam_runner=runner, beam_options=PipelineOptions(flags=flags)
    )
