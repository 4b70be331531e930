"""Names that the table lacks: which they are, where they start, and how a step sees them."""

import numpy as np
import pytest

from data_pipelines.names import first_spellings
from data_pipelines.vocabulary import build_vocabulary
from semsam_jax import config
from semsam_jax.core.errors import ConfigError
from semsam_jax.models.presets import PRESETS
from semsam_jax.parallel.mesh import build_mesh
from semsam_jax.text.tables import TextEmbeddings, table_of
from semsam_jax.train.text import build_text, initial_rows, learned_names

NAMES = ("dog", "sky", "tofu", "wheel", "car:tailgate")
"""Three objects, two parts; sky, tofu and tailgate are in no list of the table."""


def run_with(**text):
    data = {"generic_batch": 0}
    return config.build({"model": {"preset": "lite"}, "text": text, "data": data})


def test_missing_names_are_learned_behind_those_of_the_checkpoint():
    run = run_with(learn_missing=True)
    assert learned_names(run, NAMES, None) == ("sky", "tofu", "tailgate")
    start = {"text": {"learned": ["skin", "tofu"]}}
    assert learned_names(run, NAMES, start) == ("skin", "tofu", "sky", "tailgate")
    assert learned_names(run_with(), NAMES, start) == ("skin", "tofu")
    assert learned_names(run_with(), NAMES, None) == ()
    assert learned_names(run_with(source="none"), NAMES, start) == ()
    with pytest.raises(ConfigError, match=r"need text\.source=table, got 'none'"):
        run_with(source="none", learn_missing=True)


def test_rows_start_near_the_mean_name_or_as_the_checkpoint_has_them():
    run = run_with(learn_missing=True)
    trained = np.eye(2, 1024, dtype=np.float32)
    params = {"learned_names": {"rows": 5 * trained}}
    meta = {"text": {"learned": ["skin", "tofu"]}}
    rows = initial_rows(run, ("skin", "tofu", "sky", "tailgate"), meta, params)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(rows[:2], trained)
    table = TextEmbeddings.load()
    known, _ = table.lookup(table.names)
    mean = known.mean(0) / np.linalg.norm(known.mean(0))
    # As close to the mean as names of the table are, and different from each other.
    assert (rows[2:] @ mean > 0.6).all()
    assert rows[2] @ rows[3] < 0.9


def test_a_step_sees_which_rows_stand_for_which_names():
    run, sizes, mesh = run_with(learn_missing=True), PRESETS["lite"], build_mesh(1)
    text = build_text(run, sizes, NAMES, 3, mesh, ("skin", "tofu", "sky", "tailgate"))
    assert text.class_mask.all()
    assert text.meta["learned"] == ["skin", "tofu", "sky", "tailgate"]
    inputs = text.inputs(0)
    np.testing.assert_array_equal(inputs.learned, [-1, 2, 1, -1, 3])
    stored, _ = TextEmbeddings.load().lookup(["dog", "wheel"])
    np.testing.assert_allclose(inputs.table.objects[0], stored[0])
    np.testing.assert_allclose(inputs.table.parts[0], stored[1])
    plain = build_text(run_with(), sizes, NAMES, 3, mesh)
    assert plain.inputs(0).learned is None
    np.testing.assert_array_equal(plain.class_mask, [True, False, False, True, False])


SHARED = (
    "grapes",
    "grape",
    "person or sitting",
    "person or standing",
    "stop sign",
    "stop-sign",
    "sky",
    "t-shirt",
    "tshirt",
)
"""The table has grape, person and stop sign."""


def test_what_was_learned_next_to_another_table_is_not_taken(tmp_path):
    """Its rows are of another space, and nobody would see it: they have the same length."""
    TextEmbeddings.load().save(tmp_path / "mine.npz")
    run = run_with(learn_missing=True, table=str(tmp_path / "mine.npz"))
    rows = np.full((1, 1024), 9.0, np.float32)
    start = {"text": {"source": "table", "table": "", "learned": ["sky"]}}
    assert learned_names(run_with(), NAMES, start) == ("sky",)
    assert learned_names(run_with(table=run.text.table), NAMES, start) == ()
    learned = learned_names(run, NAMES, start)
    assert learned == learned_names(run, NAMES, None)
    params = {"learned_names": {"rows": rows}}
    kept = initial_rows(run, learned, start, params)
    np.testing.assert_array_equal(kept, initial_rows(run, learned, None, None))


def test_names_of_one_dataset_never_share_an_embedding():
    """Equal logits would be right and wrong for every instance."""
    run, sizes, mesh, group = run_with(), PRESETS["lite"], build_mesh(1), [0] * len(SHARED)
    plain = build_text(run, sizes, SHARED, len(SHARED), mesh, groups=group)
    kept = [False, True, True, False, True, False, False, False, False]
    np.testing.assert_array_equal(plain.class_mask, kept)
    run = run_with(learn_missing=True)
    learned = learned_names(run, SHARED, None, group)
    assert learned == ("sky", "t-shirt", "grapes", "person or standing")
    assert learned_names(run, SHARED, {"text": {"learned": learned}}, group) == learned
    text = build_text(run, sizes, SHARED, len(SHARED), mesh, learned, group)
    np.testing.assert_array_equal(text.class_mask, [True] * 5 + [False, True, True, False])
    np.testing.assert_array_equal(text.inputs(0).learned, [2, -1, -1, 3, -1, -1, 0, 1, 1])
    # A model knows them from then on; others read them as before.
    rows = np.eye(4, 1024, dtype=np.float32)
    known = table_of({"table": "", "learned": learned}, {"learned_names": {"rows": rows}})
    np.testing.assert_array_equal(known.lookup(["Grapes"])[0], rows[[2]])
    stored = TextEmbeddings.load()
    assert stored.find(["grapes"]) == stored.find(["grape"]) == known.find(["grape"])


def test_names_of_different_datasets_may_share_an_embedding():
    run, sizes, mesh = run_with(), PRESETS["lite"], build_mesh(1)
    text = build_text(run, sizes, ("grape", "grapes"), 2, mesh, groups=["a", "b"])
    assert text.class_mask.all()


def test_learned_names_of_one_dataset_are_as_many():
    """Both parts were learned as one, tailgate."""
    run, names = run_with(learn_missing=True), ("car:tailgate", "truck:tailgate", "skies", "sky")
    learned = learned_names(run, names, None, [0, 0, 1, 1])
    assert learned == ("tailgate", "skies", "sky", "truck:tailgate")
    text = build_text(run, PRESETS["lite"], names, 0, build_mesh(1), learned, [0, 0, 1, 1])
    np.testing.assert_array_equal(text.inputs(0).learned, [0, 3, 1, 2])


@pytest.mark.parametrize("pascal_parts", ["merged", "full"])
def test_no_names_of_the_seven_datasets_share_an_embedding(pascal_parts):
    vocabulary, table = build_vocabulary(pascal_parts=pascal_parts), TextEmbeddings.load()
    own = table.find_own(vocabulary.names, vocabulary.groups)
    np.testing.assert_array_equal(own, table.find(vocabulary.names))
    first = first_spellings(vocabulary.names, vocabulary.groups)
    np.testing.assert_array_equal(first, np.arange(len(vocabulary)))
    run = run_with(learn_missing=True)
    names = vocabulary.names
    assert learned_names(run, names, None, vocabulary.groups) == learned_names(run, names, None)


def test_a_checkpoint_finds_what_it_learned_in_every_spelling():
    rows = np.eye(2, 1024, dtype=np.float32)
    text = {"table": "", "learned": ["sky", "balcony railing"]}
    table = table_of(text, {"learned_names": {"rows": 3 * rows}})
    asked = ["Sky", "skies", "building:balcony_railing", "dog", "tofu"]
    found, is_known = table.lookup(asked)
    np.testing.assert_array_equal(is_known, [True, True, True, True, False])
    np.testing.assert_allclose(found[:3], rows[[0, 0, 1]])
    np.testing.assert_array_equal(found[3], TextEmbeddings.load().lookup(["dog"])[0][0])
    assert table.meta["learned"] == ["sky", "balcony railing"]
    assert "sky" in table.nearest_names("skyy")
