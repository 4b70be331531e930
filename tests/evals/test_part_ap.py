"""Object+part pairs as classes."""

import numpy as np
import pytest

from semsam_jax.core.errors import DataError
from semsam_jax.evals.part_ap import build_pairs, pair_scores, top_pairs

PAIRS = build_pairs([(1, 0), (0, 2), (1, 0), (0, 0)])


def test_pairs_are_sorted_and_unique():
    assert PAIRS.objects.tolist() == [0, 0, 1]
    assert PAIRS.parts.tolist() == [0, 2, 0]
    assert len(PAIRS) == 3
    np.testing.assert_array_equal(PAIRS.index(np.asarray([1, 0]), np.asarray([0, 2])), [2, 1])
    with pytest.raises(DataError, match=r"\(1, 2\)"):
        PAIRS.index(np.asarray([1]), np.asarray([2]))


def test_scores_and_ranking():
    objects = np.asarray([[0.5, 1.0], [0.2, 0.0]])
    parts = np.asarray([[0.4, 0.0, 1.0], [1.0, 0.0, 1.0]])
    scores = pair_scores(objects, parts, PAIRS)
    np.testing.assert_allclose(scores, [[0.2, 0.5, 0.4], [0.2, 0.2, 0.0]])
    queries, classes, best = top_pairs(scores, 3)
    assert queries.tolist() == [0, 0, 0]
    assert classes.tolist() == [1, 2, 0]
    np.testing.assert_allclose(best, [0.5, 0.4, 0.2])
