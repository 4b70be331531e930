import dataclasses
import json
import re

import numpy as np
import pytest

from data_pipelines.mixture import Mixture
from data_pipelines.pipeline import PipelineConfig, StreamConfig, dataset_numbers, make_iterator
from data_pipelines.schema import DATASETS, BatchShape
from semsam_jax.core.errors import CheckpointError, ConfigError, DataError
from tests.data_pipelines.fake_source import VOCABULARY, encode_image, fake_source

SHAPE = BatchShape(image_size=32, max_instances=5, num_prompts=4, vocab_size=4)
CONFIG = PipelineConfig(
    shape=SHAPE,
    interactive=StreamConfig(
        4, Mixture({"sa1b": 2.0, "paco": 1.0}, {"any": 1.0, "part": 1.0}, cycle=20)
    ),
    generic=StreamConfig(2, Mixture({"coco": 1.0, "objects365": 1.0}, cycle=10)),
    num_threads=0,
    prefetch=0,
    total_steps=10,
)


def sources():
    return {name: fake_source(name, 5) for name in ("sa1b", "coco", "paco", "objects365")}


def build(config=CONFIG, **kwargs):
    return make_iterator(config, sources(), VOCABULARY, **kwargs)


def test_batches_have_the_contract_of_the_schema():
    batch = next(build())
    assert set(batch) == {"interactive", "generic"}
    for stream, rows in (("interactive", 4), ("generic", 2)):
        assert set(batch[stream]) == set(SHAPE.spec())
        for key, (dtype, size) in SHAPE.spec().items():
            assert (batch[stream][key].dtype, batch[stream][key].shape) == (dtype, (rows, *size))


def test_rows_know_their_dataset_and_its_names():
    iterator = build(class_mask=np.array([True, False, True, True]))
    wanted = {
        "sa1b": [False] * 4,
        "coco": [True, False, False, False],
        "paco": [False, False, True, True],
        "objects365": [False] * 4,
    }
    seen = set()
    for _ in range(10):
        for rows in next(iterator).values():
            for number, valid in zip(rows["dataset"], rows["vocab_valid"], strict=True):
                assert valid.tolist() == wanted[DATASETS[number]]
                seen.add(DATASETS[number])
    assert seen == set(wanted)


def test_tables_are_available():
    tables = build().tables
    assert "paco" in tables["interactive"].format()
    json.dumps(tables["interactive"].to_dict())
    coco = tables["generic"].rows[0]
    assert coco.expected_epochs == pytest.approx(10 * 2 * 0.5 / 5)


def test_images_with_more_instances_than_a_row_holds_are_counted():
    """Their rows teach nothing about where a class is not, as long as one of it is cut off."""
    assert not [note for note in build().notes if "max_instances" in note]
    fewer = dataclasses.replace(CONFIG, shape=dataclasses.replace(SHAPE, max_instances=1))
    iterator = build(fewer)
    assert not next(iterator)["generic"]["vocab_valid"].any(axis=1).all()
    counts = [len(example.instances) for example in sources()["coco"].examples]
    many = sum(count > 1 for count in counts)
    (note,) = [note for note in iterator.notes if "max_instances" in note]  # others have no names
    assert note.startswith(
        f"coco: {many} of 5 images have more than data.max_instances=1 instances, up to "
        f"{max(counts)}; "
    )
    assert "--config.data.max_instances" in note
    half = build(dataclasses.replace(fewer, subsets={"coco": 0.5}))
    assert any(re.match(r"coco: \d of [1-4] images h", note) for note in half.notes)
    everything = build(dataclasses.replace(fewer, verified_classes=False))
    assert not [note for note in everything.notes if "max_instances" in note]


def test_every_example_is_seen_once_an_epoch():
    only = dataclasses.replace(
        CONFIG,
        interactive=StreamConfig(5, Mixture({"sa1b": 1.0}, cycle=1)),
        generic=StreamConfig(0, Mixture({})),
    )
    data = {"sa1b": fake_source("sa1b", 5)}
    for number, example in enumerate(data["sa1b"].examples):
        grey = encode_image(np.full((60, 90, 3), 40 * (number + 1), np.uint8), "PNG")
        data["sa1b"].examples[number] = dataclasses.replace(example, image=grey)
    iterator = make_iterator(only, data, VOCABULARY)
    orders = set()
    for _ in range(6):
        batch = next(iterator)
        assert set(batch) == {"interactive"}
        order = tuple(int(image.max()) // 40 for image in batch["interactive"]["image"])
        assert sorted(order) == [1, 2, 3, 4, 5]
        orders.add(order)
    assert len(orders) > 2


def test_shapes_and_batches_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="does not divide over 3 processes"):
        build(process_count=3)
    with pytest.raises(ConfigError, match="vocab_size is 9, the vocabulary has 4"):
        build(dataclasses.replace(CONFIG, shape=dataclasses.replace(SHAPE, vocab_size=9)))
    with pytest.raises(ConfigError, match="class_mask has shape"):
        build(class_mask=np.ones(3, bool))
    off = StreamConfig(0, Mixture({}))
    with pytest.raises(ConfigError, match="both streams have batch_size 0"):
        build(dataclasses.replace(CONFIG, interactive=off, generic=off))


def test_a_position_of_another_run_is_refused():
    state = build(seed=0).state_for_step(7)
    with pytest.raises(CheckpointError, match="seed is 0 in the checkpoint and 1 here"):
        build(seed=1).set_state(state)
    fewer = dataclasses.replace(CONFIG, generic=StreamConfig(4, CONFIG.generic.mixture))
    with pytest.raises(CheckpointError, match=r"generic is .*'batch_size': 2"):
        build(fewer).set_state(state)


def test_an_image_that_breaks_later_is_named():
    data = sources()
    iterator = make_iterator(CONFIG, data, VOCABULARY)
    for source in data.values():
        for number, example in enumerate(source.examples):
            source.examples[number] = dataclasses.replace(example, image=b"overwritten")
    with pytest.raises(DataError, match="image"):
        next(iterator)


def test_indexes_are_kept_in_a_folder(tmp_path):
    first = next(build(index_folder=tmp_path))
    stored = {path.parent.name for path in tmp_path.glob("*/report.json")}
    names = ("sa1b", "coco", "paco", "objects365")
    assert stored == {f"{name}-0123456789abcdef" for name in names}
    assert not list(tmp_path.glob("*/*.part"))
    again = next(build(index_folder=tmp_path))
    for key, value in first["interactive"].items():
        np.testing.assert_array_equal(again["interactive"][key], value)


def test_custom_datasets_are_numbered_after_the_known_ones():
    numbers = dataset_numbers(("zebra", "coco", "ant"))
    assert numbers["coco"] == DATASETS.index("coco")
    assert (numbers["ant"], numbers["zebra"]) == (len(DATASETS), len(DATASETS) + 1)
