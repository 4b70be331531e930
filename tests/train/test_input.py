"""Training takes records or native folders, people's own sets, and keeps what it scanned."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from configs.joint import get_config
from data_pipelines.builders.tfds_builder import RecordsBuilder
from data_pipelines.sources import CocoFolder, RecordReader
from semsam_jax import config as config_lib
from semsam_jax.core.errors import DataError
from semsam_jax.train import input as input_lib
from tests.data_pipelines.trees import write_tree


def make_run(root, **shares):
    config = get_config()
    config.data.root = str(root)
    config.data.datasets = shares
    config.data.generic_datasets = shares
    config.data.granularity = {"any": 1.0}
    config.data.image_size = 64
    config.data.interactive_batch = config.data.generic_batch = 2
    return config_lib.build(config)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """COCO as records, paco and an own set as native folders."""
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(tmp_path / "cache"))
    write_tree("coco", tmp_path / "native/coco")
    RecordsBuilder(
        "coco", tmp_path / "native/coco", "train", tmp_path / "root", num_threads=1
    ).download_and_prepare()
    write_tree("paco", tmp_path / "root/paco")
    write_tree("coco_folder", tmp_path / "root/mine")
    return tmp_path / "root"


def test_records_native_folders_and_own_sets_feed_one_run(root, tmp_path):
    run = make_run(root, coco=1.0, paco=1.0, mine=1.0)
    names = input_lib.used_datasets(run)
    vocabulary = input_lib.open_vocabulary(run, names)
    assert vocabulary.datasets == ("coco", "paco", "mine")
    sources = input_lib.open_sources(run, names, "train", vocabulary)
    assert isinstance(sources["coco"], RecordReader)
    assert isinstance(sources["mine"], CocoFolder)
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    valid = np.ones(len(vocabulary), bool)
    data = input_lib.build_input(run, vocabulary, valid, mesh)
    batches = [next(data) for _ in range(4)]
    assert batches[0].interactive.image.shape == (2, 64, 64, 3)
    data.restore(data.state(1))  # the batch made ahead is forgotten
    for wanted in batches[1:3]:
        jax.tree.map(np.testing.assert_array_equal, next(data), wanted)
    data.close()
    kept = {path.parent.name.split("-")[0] for path in tmp_path.glob("cache/index/*/report.json")}
    assert kept == {"paco", "mine"}  # records bring theirs


def test_missing_folders_are_named_together(root):
    run = make_run(root, coco=1.0, ade20k=1.0, zebra=1.0)
    with pytest.raises(DataError, match=r"no folder ade20k, zebra; found coco, mine, paco"):
        input_lib.dataset_roots(run, input_lib.used_datasets(run))
