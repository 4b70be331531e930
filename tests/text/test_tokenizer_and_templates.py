"""Ids equal to the recorded ones; sentences as the recorded ones."""

from pathlib import Path

import instant_clip_tokenizer
import numpy as np
import pytest

from semsam_jax.text.templates import (
    embed_names,
    evaluation_prompts,
    load_templates,
    strip_endings,
    training_prompt,
    training_prompts,
)
from semsam_jax.text.tokenizer import END_ID, START_ID, Tokenizer

DATA = Path(__file__).parent.parent / "golden" / "data"


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "text.npz") as file:
        return dict(file)


def test_recorded_ids(golden):
    tokenizer = Tokenizer(18)
    names = [strip_endings(str(name)) for name in golden["class_names"]]
    plain = [str(name) for name in golden["class_names"]]
    np.testing.assert_array_equal(tokenizer(plain), golden["tokens/plain_ids"])
    np.testing.assert_array_equal(
        tokenizer(evaluation_prompts(plain[1])), golden["ensemble/ids_class1"]
    )
    strings = [
        training_prompt(name, int(index))
        for name, index in zip(plain, golden["train/template_index"], strict=True)
    ]
    assert strings == [str(text) for text in golden["train/strings"]]
    np.testing.assert_array_equal(tokenizer(strings), golden["train/ids"])
    assert names[2] == "tree"
    assert tokenizer(plain).dtype == np.int32


def test_recorded_truncation(golden):
    kept = golden["tokens/truncated_ids"][0]
    text = instant_clip_tokenizer.Tokenizer().decode([int(i) for i in kept[1:-1]])
    np.testing.assert_array_equal(Tokenizer(18)([text + " and then some more words"])[0], kept)


def test_rows_have_start_and_end():
    ids = Tokenizer(5)(["", "dog", "  DOG \n", "one two three four five six"])
    np.testing.assert_array_equal(ids[0], [START_ID] + [END_ID] * 4)
    np.testing.assert_array_equal(ids[1], ids[2])
    assert ids[3, 0] == START_ID
    assert ids[3, -1] == END_ID
    assert Tokenizer(18)([]).shape == (0, 18)
    with pytest.raises(ValueError, match="at least 3"):
        Tokenizer(2)


def test_templates_are_the_recorded_ones(golden):
    assert load_templates() == tuple(str(t) for t in golden["templates"])
    assert len(evaluation_prompts("dog")) == 81


def test_names_are_cleaned_for_training_only():
    assert training_prompt("potted plant, pot", 0) == "potted plant pot."
    assert training_prompt("rug-merged+mat", 0) == "rug mat."
    assert evaluation_prompts("potted plant, pot")[0] == "potted plant, pot."
    assert evaluation_prompts("floor-other-merged")[0] == "floor."


def test_training_prompts_follow_the_generator():
    names = ["dog"] * 200
    first = training_prompts(names, np.random.default_rng(3))
    assert first == training_prompts(names, np.random.default_rng(3))
    assert len(set(first)) > 40


def test_embedding_in_groups_of_equal_size():
    seen = []

    def encode(ids):
        seen.append(ids.shape)
        return np.stack([ids[:, 1], ids[:, 2]], axis=-1).astype(np.float32)

    rows = embed_names(encode, ["dog", "cat", "tree"], Tokenizer(18), names_per_call=2)
    assert rows.shape == (3, 2)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, rtol=1e-6)
    assert seen == [(162, 18), (162, 18)]
