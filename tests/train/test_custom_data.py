"""The data of a fine-tuning run: any tool's folder, its own words, nothing vanishes."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from configs.finetune import get_config
from data_pipelines.inspect import inspect, sample_settings
from data_pipelines.sources.subset import hold_out
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax import config as config_lib
from semsam_jax.core import checkpoint_io
from semsam_jax.core.errors import DataError
from semsam_jax.evals.dataset_samples import EvalFrame, open_dataset
from semsam_jax.train import input as input_lib
from semsam_jax.train.best import BestCheckpoint
from tests.data_pipelines import custom_data


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(tmp_path / "cache"))


def make_run(folder, **changes):
    config = get_config()
    config.data.custom = str(folder)
    config.data.image_size = 64
    config.data.interactive_batch, config.data.generic_batch = 1, 0
    config.model.preset, config.model.warm_start = "tiny", "checkpoint"
    config.text.source = "none"
    config.unlock()
    for key, value in changes.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return config_lib.build(config)


def opened(run, unembedded=()):
    """(input, evaluation images) as the loop opens them; names without a text embedding."""
    vocabulary = input_lib.open_vocabulary(run, input_lib.used_datasets(run))
    held_out = input_lib.evaluation_data(run, vocabulary)
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    class_mask = ~np.isin(vocabulary.names, unembedded)
    data = input_lib.build_input(run, vocabulary, class_mask, mesh, held_out)
    next(data)
    data.close()
    return data, held_out


def test_a_run_names_its_folder_its_classes_and_what_it_does_not_use(tmp_path):
    def change(content):
        content["annotations"][0]["segmentation"] = []
        content["annotations"][3]["iscrowd"] = 1

    custom_data.write(tmp_path / "mine", change)
    custom_data.write(tmp_path / "mine", place="annotations/val.json")
    run = make_run(tmp_path / "mine")
    assert input_lib.data_name(run) == str(tmp_path / "mine")
    for _ in range(2):  # the second time from the kept index
        data, held_out = opened(run)
        assert data.notes[0] == "custom: 2 training images, 2 classes: dog, cat"
        assert any("1 annotation not used, no usable outline" in note for note in data.notes)
        assert any("1 crowd region (iscrowd 1) is ignored" in note for note in data.notes)
        both = "custom: 2 of 2 validation images are also training images, "
        assert sum(note.startswith(both) for note in data.notes) == 1
        assert not held_out.notes
        assert len(held_out.samples()) == 2


def test_splits_of_different_images_or_of_one_folder_share_none(tmp_path):
    write = functools.partial(custom_data.write, tmp_path / "mine")
    write(place="annotations/train.json", images="images/train")
    write(place="annotations/val.json", images="images/val")
    custom_data.write(tmp_path / "one")  # divided
    for folder in ("mine", "one"):
        assert not any("also training" in n for n in opened(make_run(tmp_path / folder))[0].notes)


def test_inspect_takes_the_same_folder(tmp_path, capsys):
    custom_data.write(tmp_path / "mine", lambda c: c["annotations"][0].update(segmentation=[]))
    shares = {"custom": 1.0}
    settings = sample_settings() | {"custom": str(tmp_path / "mine"), "datasets": shares}
    settings |= {"generic_datasets": shares, "granularity": {"any": 1.0}, "image_size": 64}
    written = inspect(settings, 2, tmp_path / "out")
    assert [path.name for path in written] == ["interactive.png", "generic.png"]
    assert "note: custom: 1 annotation not used, no usable outline" in capsys.readouterr().out


def test_a_class_of_val_alone_is_named(tmp_path):
    def change(content):
        content["categories"].append({"id": 3, "name": "bird"})
        content["annotations"][0]["category_id"] = 3

    custom_data.write(tmp_path)
    custom_data.write(tmp_path, change, place="annotations/val.json")
    with pytest.raises(DataError, match=r"class bird is in .*val\.json and not in the train split"):
        opened(make_run(tmp_path))
    # A class without annotations does no harm.
    custom_data.write(
        tmp_path,
        lambda content: content["categories"].append({"id": 3, "name": "bird"}),
        place="annotations/val.json",
    )
    opened(make_run(tmp_path))


def test_a_folder_that_is_not_given_is_asked_for():
    run = make_run("")
    with pytest.raises(
        DataError, match=r"^custom: not in the embedded sample.*data\.custom=FOLDER"
    ):
        input_lib.open_vocabulary(run, ("custom",))
    with pytest.raises(DataError, match=r"^custom: not in .* another --config\.eval_dataset"):
        input_lib.evaluation_data(run, build_vocabulary(["coco"]))


def test_a_set_without_val_holds_images_out(tmp_path):
    custom_data.write(tmp_path, place="result.json")
    data, held_out = opened(make_run(tmp_path))
    assert data.notes[0].startswith("custom: 1 training images")
    assert len(held_out.samples()) == 1
    data, held_out = opened(make_run(tmp_path, eval_images=0, keep_best=False))
    assert data.notes[0].startswith("custom: 2 training images")
    assert held_out is None
    custom_data.write(
        tmp_path,
        lambda content: content["annotations"][0].update(segmentation=[[1, 2, float("nan")] * 2]),
        place="result.json",
    )
    with pytest.raises(DataError, match=r"1 usable images of 2 and no split val.*is nan"):
        opened(make_run(tmp_path))


def test_boxes_and_masks_hold_the_same_images_out(tmp_path):
    """The evaluation reads masks, the training boxes; few images have both."""

    def change(content):
        rows = content["annotations"]
        content["images"] = [{"id": n, "file_name": f"p{1 + n % 2}.jpg"} for n in range(1, 13)]
        content["annotations"] = [
            {**rows[0], "id": n, "image_id": n} | ({} if n in (3, 4, 5) else {"segmentation": []})
            for n in range(1, 13)
        ]

    custom_data.write(tmp_path, change)
    run = make_run(tmp_path, data__custom_boxes_only=True)
    vocabulary = input_lib.open_vocabulary(run, input_lib.used_datasets(run))
    trained, held = (
        input_lib.open_sources(run, ("custom",), split, vocabulary)["custom"]
        for split in ("train", "val")
    )
    assert held.has_masks
    assert not trained.has_masks
    assert set(held.example_ids) < {"3", "4", "5"}
    assert sorted([*trained.example_ids, *held.example_ids], key=int) == [
        str(n) for n in range(1, 13)
    ]
    assert opened(run)[0].notes[0].startswith("custom: 11 training images")


def test_what_is_held_out_depends_on_the_ids_alone(tmp_path):
    def images(numbers):
        def change(content):
            content["images"] = [{"id": n, "file_name": f"p{1 + n % 2}.jpg"} for n in numbers]
            content["annotations"] = [
                {**content["annotations"][0], "id": n, "image_id": n} for n in numbers
            ]

        return change

    def held(numbers):
        source = custom_data.read(custom_data.write(tmp_path, images(numbers)))
        rest, out = hold_out(source, range(len(source)))
        assert sorted([*rest.example_ids, *out.example_ids], key=int) == list(source.example_ids)
        assert rest[0] == source[source.example_ids.index(rest.example_ids[0])]
        assert rest.fingerprint != out.fingerprint
        return set(out.example_ids)

    few, many = held(range(60)), held(range(0, 120))
    assert 2 <= len(few) <= 14
    assert few == {name for name in many if int(name) < 60}


def test_an_evaluation_without_a_mask_is_refused_before_training(tmp_path):
    custom_data.write(tmp_path)
    custom_data.write(
        tmp_path, lambda content: content["annotations"].clear(), place="annotations/val.json"
    )
    with pytest.raises(DataError, match="none of the 2 images has an annotated mask to score"):
        opened(make_run(tmp_path))


def test_machine_made_masks_of_the_evaluation_are_told_and_never_all_of_it(tmp_path):
    def change(content):
        content["annotations"] = content["annotations"][:3]
        for annotation in content["annotations"][1:]:
            annotation["is_pseudo"] = 1

    custom_data.write(tmp_path)
    custom_data.write(tmp_path, change, place="annotations/val.json")
    note = "custom: machine-made masks, which are not scored: 2"
    assert note in opened(make_run(tmp_path))[1].notes

    def all_of_them(content):
        for annotation in content["annotations"]:
            annotation["is_pseudo"] = 1

    custom_data.write(tmp_path, all_of_them, place="annotations/val.json")
    with pytest.raises(
        DataError, match=r"has an annotated mask to score \(all \d are machine-made"
    ):
        opened(make_run(tmp_path))


def test_boxes_alone_and_images_elsewhere(tmp_path):
    def change(content):
        for row in content["annotations"]:
            row["segmentation"] = []
        content["categories"].append({"id": 3, "name": "bird"})

    custom_data.write(tmp_path / "mine", change, images="../elsewhere")
    settings = {"data__custom_images": str(tmp_path / "elsewhere"), "data__custom_boxes_only": True}
    data, _ = opened(make_run(tmp_path / "mine", eval_images=0, keep_best=False, **settings))
    assert data.notes[:2] == [
        "custom: 2 training images, 3 classes: dog, cat, bird",
        "custom: no training instance of bird, which cannot be learned",
    ]
    assert not any("not used" in note for note in data.notes)


def test_names_without_a_text_embedding_are_listed(tmp_path):
    """Their masks are trained, but no class head ever learns them."""
    custom_data.write(tmp_path)
    table = make_run(tmp_path, eval_images=0, keep_best=False, text__source="table")
    notes = opened(table, unembedded=["cat"])[0].notes
    (note,) = [note for note in notes if "embedding" in note]
    assert note.startswith("custom: no text embedding of its own for cat: ")
    assert "--config.text.learn_missing=True" in note
    assert not [note for note in opened(table)[0].notes if "embedding" in note]
    clicks = make_run(tmp_path, eval_images=0, keep_best=False)  # a model without names
    notes = opened(clicks, unembedded=["cat", "dog"])[0].notes
    assert not [note for note in notes if "embedding" in note]


def test_classes_that_are_spelled_alike_are_named_once(tmp_path):
    def change(content):
        for row, name in zip(content["categories"], ("Car", "car"), strict=True):
            row["name"] = name

    custom_data.write(tmp_path, change)
    run = make_run(tmp_path, eval_images=0, keep_best=False, text__source="table")
    notes = opened(run)[0].notes
    assert notes[0] == "custom: 2 training images, 1 classes: car"
    assert any("the classes 'Car' and 'car' have the same name" in note for note in notes)
    assert not any("cannot be learned" in note for note in notes)
    vocabulary = input_lib.open_vocabulary(run, input_lib.used_datasets(run))
    sources = input_lib.open_sources(run, ("custom",), "train", vocabulary)
    assert input_lib.count_classes(sources, vocabulary).tolist() == [4, 0]


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMSAM_JAX_CACHE", "/dev/null/x")
    custom_data.write(tmp_path)
    custom_data.write(tmp_path, place="annotations/val.json")
    data, _ = opened(make_run(tmp_path))
    assert data.notes[0].startswith("custom: 2 training images")
    checkpoint_io.remember_last_run(tmp_path)
    assert checkpoint_io.last_run() is None


def test_no_score_is_never_the_best(tmp_path):
    best = BestCheckpoint(tmp_path, True)
    assert not best.update({"iou_max": float("nan")}, {}, {}, 0)
    assert best.score is None
    assert not list(tmp_path.iterdir())


def test_a_broken_image_is_counted_and_not_scored(tmp_path):
    custom_data.write(
        tmp_path / "custom",
        lambda content: content["annotations"][0].update(iscrowd="maybe"),
        place="val.json",
    )
    dataset = open_dataset("custom", str(tmp_path), "val", EvalFrame(64), None)
    chosen, report = dataset.surveyed()
    assert len(chosen.samples()) == 1
    assert [sample.image_id for sample in chosen.samples()] == ["2"]
    assert "1 of 2 records not used, unreadable" in chosen.notes[0]
    assert report.instances == 2
    custom_data.write(
        tmp_path / "custom",
        lambda content: [row.update(iscrowd=7) for row in content["annotations"]],
        place="val.json",
    )
    with pytest.raises(DataError, match="2 of 2 records not used"):
        open_dataset("custom", str(tmp_path), "val", EvalFrame(64), None).surveyed()
