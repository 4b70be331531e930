"""Embeddings of class names as a checkpoint says."""

import numpy as np
import pytest

from semsam_jax.core.errors import CheckpointError
from semsam_jax.evals.class_embeddings import embed_classes, text_table

TABLE = {"class_heads_trained": True, "text": {"source": "table", "table": None}}


def test_names_of_the_embedded_table():
    rows, found = embed_classes(None, {}, TABLE, ["dog", "no such thing at all"])
    assert found.tolist() == [True, False]
    assert np.linalg.norm(rows[0]) == pytest.approx(1, abs=1e-5)
    text = text_table(rows, 1)
    assert (len(text.objects), len(text.parts)) == (1, 1)


def test_untrained_heads_are_not_scored():
    with pytest.raises(CheckpointError, match="never trained"):
        embed_classes(None, {}, {"text": {"source": "table"}}, ["dog"])


def test_unknown_source_is_named():
    with pytest.raises(CheckpointError, match="'magic'"):
        embed_classes(None, {}, {"class_heads_trained": True, "text": {"source": "magic"}}, ["dog"])
