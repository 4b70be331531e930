"""The same rows in the same order, whoever computes them and wherever they start."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.pipeline import make_iterator
from tests.data_pipelines.fake_source import VOCABULARY
from tests.data_pipelines.test_pipeline import CONFIG, build, sources

STEPS = 4


def take(iterator, count=STEPS):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for stream, rows in one.items():
            for key, values in rows.items():
                np.testing.assert_array_equal(values, other[stream][key], err_msg=key)


@pytest.fixture(scope="module")
def reference():
    return take(build())


def test_another_seed_gives_other_rows(reference):
    other = take(build(seed=1))
    images = [batch["interactive"]["image"] for batch in (reference[0], other[0])]
    assert not np.array_equal(*images)


def test_threads_and_prefetching_change_nothing(reference):
    threaded = dataclasses.replace(CONFIG, num_threads=8, prefetch=2)
    assert_same(take(build(threaded)), reference)


def test_worker_processes_change_nothing(reference):
    # One stream only: every worker is a new interpreter.
    alone = dataclasses.replace(CONFIG.generic, batch_size=0)
    spread = dataclasses.replace(CONFIG, generic=alone, num_workers=2, num_threads=1, prefetch=1)
    wanted = [{"interactive": batch["interactive"]} for batch in reference]
    iterator = build(spread)
    assert_same(take(iterator, 2), wanted[:2])
    iterator.set_state(iterator.state_for_step(3))  # workers start anew from there
    assert_same(take(iterator, 1), wanted[3:])


@pytest.mark.parametrize("hosts", [1, 2])
def test_hosts_share_the_global_batch_in_contiguous_blocks(reference, hosts):
    parts = [take(build(process_index=i, process_count=hosts)) for i in range(hosts)]
    for step in range(STEPS):
        for stream in ("interactive", "generic"):
            for key, wanted in reference[step][stream].items():
                joined = np.concatenate([part[step][stream][key] for part in parts])
                np.testing.assert_array_equal(joined, wanted)


def test_four_hosts_too():
    four = dataclasses.replace(CONFIG, generic=dataclasses.replace(CONFIG.generic, batch_size=4))
    whole = take(build(four), 2)
    parts = [take(build(four, process_index=i, process_count=4), 2) for i in range(4)]
    for step in range(2):
        for stream, rows in whole[step].items():
            joined = np.concatenate([part[step][stream]["prompt_box"] for part in parts])
            np.testing.assert_array_equal(joined, rows["prompt_box"])


def test_resuming_continues_exactly(reference):
    threaded = dataclasses.replace(CONFIG, num_threads=2, prefetch=2)
    first = build(threaded)
    next(first), next(first)
    state = first.get_state()
    next(first)  # what was made ahead does not move the position
    first.close()
    assert state == first.state_for_step(2)
    second = build()
    second.set_state(state)
    assert_same(take(second, STEPS - 2), reference[2:])
    first.set_state(state)
    assert_same(take(first, STEPS - 2), reference[2:])


def test_a_run_goes_on_with_other_hosts_and_threads(reference):
    """Two hosts stop after one step, one host does one more, and two others finish."""
    both = [build(process_index=i, process_count=2) for i in range(2)]
    states = set()
    for host in both:
        next(host)
        states.add(host.get_state())
        host.close()
    assert len(states) == 1  # a position of the run, not of a host
    threaded = dataclasses.replace(CONFIG, num_threads=3, prefetch=1)
    alone = build(threaded)
    alone.set_state(states.pop())
    assert_same(take(alone, 1), reference[1:2])
    for index in range(2):
        host = build(process_index=index, process_count=2)
        host.set_state(alone.get_state())
        batch = take(host, 1)[0]
        for stream, rows in batch.items():
            for key, values in rows.items():
                half = len(values)
                wanted = reference[2][stream][key][index * half : (index + 1) * half]
                np.testing.assert_array_equal(values, wanted)


def test_far_positions_are_as_cheap_as_near_ones():
    iterator = build()
    iterator.set_state(iterator.state_for_step(10**9))
    next(iterator)
    assert iterator.get_state() == iterator.state_for_step(10**9 + 1)


def test_orbax_handler_of_grain_saves_and_restores(tmp_path, reference):
    import grain
    from etils import epath

    handler = grain.checkpoint.CheckpointHandler()
    first = build()
    next(first)
    handler.save(epath.Path(tmp_path), first)
    second = handler.restore(epath.Path(tmp_path), build())
    assert_same(take(second, 1), reference[1:2])


SCRIPT = """
import dataclasses
from absl import app
from tests.data_pipelines.test_pipeline import CONFIG, build

def main(argv):
    iterator = build(dataclasses.replace(CONFIG, num_workers=1, num_threads=0, prefetch=1))
    print(next(iterator)["interactive"]["image"].astype(int).sum())
    iterator.close()

if __name__ == "__main__":
    app.run(main)
"""


def test_worker_processes_start_from_an_absl_script(tmp_path, reference):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=200,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == reference[0]["interactive"]["image"].astype(int).sum()


def test_sources_are_only_read_never_changed():
    data = sources()
    before = [list(source.examples) for source in data.values()]
    take(make_iterator(CONFIG, data, VOCABULARY), 2)
    assert before == [source.examples for source in data.values()]
