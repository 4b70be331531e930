"""Ids equal to the recorded ones; sentences as the recorded ones."""

from pathlib import Path

import numpy as np
import pytest

from semsam_jax.text import bpe
from semsam_jax.text.templates import (
    embed_names,
    evaluation_prompts,
    load_templates,
    strip_endings,
    training_prompt,
    training_prompts,
)
from semsam_jax.text.tokenizer import END_ID, START_ID, Tokenizer
from tests.golden.table import EXACT, compare

DATA = Path(__file__).parent.parent / "golden" / "data"


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "text.npz") as file:
        return dict(file)


def test_recorded_ids(golden):
    tokenizer = Tokenizer(18)
    names = [strip_endings(str(name)) for name in golden["class_names"]]
    plain = [str(name) for name in golden["class_names"]]
    compare("text", "tokens/plain_ids", tokenizer(plain), EXACT)
    compare("text", "ensemble/ids_class1", tokenizer(evaluation_prompts(plain[1])), EXACT)
    strings = [
        training_prompt(name, int(index))
        for name, index in zip(plain, golden["train/template_index"], strict=True)
    ]
    assert strings == [str(text) for text in golden["train/strings"]]
    compare("text", "train/ids", tokenizer(strings), EXACT)
    assert names[2] == "tree"
    assert tokenizer(plain).dtype == np.int32


def test_recorded_truncation():
    text = "a very long sentence with many many words that goes well past the eighteen token limit"
    got = Tokenizer(18)([text + " and then some more words"])
    compare("text", "tokens/truncated_ids", got, EXACT)


# What instant-clip-tokenizer 0.1.1 gives; 26,500 random texts were compared once as well.
IDS = {
    "it's we're I'LL don't 'tis ''s": [
        *(585, 568, 649, 982, 328, 1342, 847, 713, 713, 533, 8445, 338),
    ],
    "Caf\xe9 na\xefve \xc9COLE stra\xdfe \u0130stanbul \u0391\u03a3": [
        *(15304, 1097, 35689, 563, 3459, 8166, 1894, 127, 253, 324),
        *(328, 16384, 11231, 138, 109, 139, 480),
    ],
    "\u6771\u4eac \u30bf\u30ef\u30fc": [48338, 21078, 361, 34941, 2429, 107, 30391],
    "123 4\xbd \xb2\xb3 \u2167": [
        *(272, 273, 274, 275, 33613, 41175, 126, 367, 158, 227, 371),
    ],
    "!!!wow... a--b": [995, 2781, 678, 320, 2432, 321],
    "\U0001f600\U0001f44d\U0001f3fd dog": [12832, 43722, 1929],
    "\u0301e\u0301 a_b": [136, 479, 324, 136, 479, 320, 318, 321],
    "\u200bzero\xa0x": [9844, 5848, 343],
    "\ufb00 it\u2019s": [171, 105, 478, 585, 728, 503, 338],
    "antidisestablishmentarianism": [3120, 4262, 7726, 12658, 1585, 44351],
    " \t\n": [],
}


@pytest.mark.parametrize("text", IDS, ids=ascii)
def test_words_of_all_kinds(text):
    assert bpe.load().encode(text) == IDS[text]


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
