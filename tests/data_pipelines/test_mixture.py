import numpy as np
import pytest

from data_pipelines.index import build_index
from data_pipelines.mixture import Mixture, build_mixture
from semsam_jax.core.errors import ConfigError
from tests.data_pipelines.fake_source import fake_source


@pytest.fixture(scope="module")
def indexes():
    return {name: build_index(fake_source(name, 6)) for name in ("sa1b", "coco", "paco")}


SHARES = {"sa1b": 4.0, "coco": 2.0, "paco": 1.0}


def test_weights_are_granularity_share_times_dataset_share(indexes):
    mixture = Mixture(SHARES, {"any": 2.0, "object": 1.0, "part": 1.0}, cycle=400)
    table = build_mixture(mixture, indexes, total_rows=4000)
    weight = {(r.dataset, r.view): r.weight for r in table.rows}
    assert weight["sa1b", "any"] == pytest.approx(0.5 * 4 / 7)
    assert weight["coco", "object"] == pytest.approx(0.25 * 2 / 3)  # sa1b has no objects
    assert weight["paco", "part"] == pytest.approx(0.25)  # the only one with parts
    assert weight["sa1b", "part"] == weight["coco", "part"] == 0
    assert sum(weight.values()) == pytest.approx(1)
    part = next(r for r in table.rows if (r.dataset, r.view) == ("paco", "part"))
    assert part.examples == 3
    assert part.expected_epochs == pytest.approx(4000 * 0.25 / 3)
    text = table.format()
    assert "share goes to the other datasets" in text
    assert len(text.splitlines()) == 1 + 9


def test_counts_are_exact_over_a_cycle_and_even_within(indexes):
    mixture = Mixture(SHARES, {"any": 1.0}, cycle=100)
    table = build_mixture(mixture, indexes)
    assert [r.in_cycle for r in table.active] == [57, 29, 14]
    schedule = table.schedule()
    np.testing.assert_array_equal(np.bincount(schedule), [57, 29, 14])
    for view, count in enumerate([57, 29, 14]):
        running = np.cumsum(schedule == view)
        ideal = count * np.arange(1, 101) / 100
        assert np.abs(running - ideal).max() <= 1


def test_a_share_of_zero_leaves_out(indexes):
    mixture = Mixture({**SHARES, "objects365": 0.0, "sa1b": 0.0}, {"any": 1.0, "part": 0.0})
    table = build_mixture(mixture, indexes)
    assert {r.dataset for r in table.rows} == {"coco", "paco"}


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (Mixture({"sa1b": 1.0, "coco": 1.0}, {"part": 1.0}), "'part'.*none of sa1b, coco"),
        (Mixture(SHARES, {"object": 1.0}), "dataset 'sa1b' has a share but no examples"),
        (Mixture({"ade20k": 1.0}), "no data for ade20k"),
        (Mixture(SHARES, {"whole": 1.0}), "granularity 'whole'"),
        (Mixture({"coco": -1.0}), "share of coco"),
        (Mixture({"coco": float("nan")}), "share of coco"),
        (Mixture({"coco": 0.0}), "every share is 0"),
        (Mixture({"coco": 1.0, "paco": 1e-5}), "less than one row in a cycle"),
    ],
)
def test_impossible_mixtures_are_refused(indexes, mixture, message):
    with pytest.raises(ConfigError, match=message):
        build_mixture(mixture, indexes)
