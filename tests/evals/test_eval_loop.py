"""Spreading over batches, devices and processes, and going on after an interruption."""

import jax
import numpy as np
import pytest

from semsam_jax.core.errors import DataError
from semsam_jax.evals.eval_loop import EvalLoop, SingleImageScorer
from semsam_jax.evals.interactive import InteractiveEvaluator, InteractiveProtocol
from semsam_jax.evals.one_click import evaluate_one_click
from semsam_jax.evals.resume_log import ResumeLog
from semsam_jax.evals.samples import EvalSample
from tests.evals.fakes import ReadingModel, reading_sample
from tests.evals.test_one_click import SEGMENTS

SAMPLES = [
    reading_sample(np.roll(SEGMENTS, shift, axis=1)[:, : 12 - shift % 2], image_id=f"im{shift}")
    for shift in range(7)
]


class FakeSamples:
    """Counts what is read."""

    def __init__(self, samples=SAMPLES):
        self.samples, self.reads = samples, []

    def __len__(self):
        return len(self.samples)

    def read(self, positions):
        for position in positions:
            self.reads.append(position)
            yield self.samples[position]


def one_value(sample: EvalSample) -> tuple:
    return ([len(sample.masks) / 10],)


def evaluator():
    return InteractiveEvaluator(InteractiveProtocol(max_clicks=1))


@pytest.fixture(scope="module")
def alone():
    return evaluate_one_click(ReadingModel(), {}, SAMPLES)


@pytest.mark.parametrize("options", [{"devices": 1, "images": 3}, {"devices": 4, "images": 1}])
def test_result_does_not_depend_on_batch_or_devices(alone, options):
    eval_loop = EvalLoop(
        devices=tuple(jax.local_devices()[: options["devices"]]),
        images_per_device=options["images"],
    )
    result = evaluate_one_click(
        ReadingModel(), {}, SAMPLES[::-1], prompts_per_call=2, eval_loop=eval_loop
    )
    assert result.scalars() == alone.scalars()
    np.testing.assert_array_equal(result.table.iou, alone.table.iou)


def test_shares_of_processes_make_the_whole(alone):
    merged, read = None, []
    for index in range(3):
        images = FakeSamples()
        eval_loop = EvalLoop(process_index=index, process_count=3)
        part = eval_loop.run("x", evaluator(), images, SingleImageScorer(one_value))
        read += images.reads
        if merged is None:
            merged = part
        else:
            merged.merge(part)
    assert sorted(read) == list(range(7))
    whole = EvalLoop().run("x", evaluator(), FakeSamples(), SingleImageScorer(one_value))
    assert merged.result().scalars() == whole.result().scalars()


def test_interrupted_run_goes_on(tmp_path):
    def fails_at_four(sample):
        if sample.image_id == "im4":
            raise DataError("broken image")
        return one_value(sample)

    eval_loop = EvalLoop(folder=tmp_path, settings={"checkpoint": 1})
    with pytest.raises(DataError, match="broken image"):
        eval_loop.run("x", evaluator(), FakeSamples(), SingleImageScorer(fails_at_four))
    images = FakeSamples()
    result = eval_loop.run("x", evaluator(), images, SingleImageScorer(one_value)).result()
    assert images.reads == [4, 5, 6]
    whole = EvalLoop().run("x", evaluator(), FakeSamples(), SingleImageScorer(one_value)).result()
    assert result.scalars() == whole.scalars()
    assert list(tmp_path.iterdir()) == []


def test_another_number_of_processes_goes_on(tmp_path):
    resume_logs = [ResumeLog(tmp_path, "x", {}, process) for process in (0, 1)]
    for position in range(5):
        resume_logs[position % 2].write(position, {"curves": np.asarray([[0.1 * position]])})
    for resume_log in resume_logs:
        resume_log.close()
    images = FakeSamples()
    result = (
        EvalLoop(folder=tmp_path)
        .run("x", evaluator(), images, SingleImageScorer(one_value))
        .result()
    )
    assert images.reads == [5, 6]
    assert result.num_instances == 7


def test_other_settings_start_anew(tmp_path):
    first = ResumeLog(tmp_path, "x", {"checkpoint": 1})
    first.write(0, {"n": 1})
    first.close()
    other = ResumeLog(tmp_path, "y", {"checkpoint": 1})
    other.write(0, {"n": 1})
    assert ResumeLog(tmp_path, "x", {"checkpoint": 2}).finished() == {}
    assert ResumeLog(tmp_path, "x", {"checkpoint": 1}).finished() == {}
    assert other.finished() == {0: {"n": 1}}


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_end_of_a_record_is_dropped(tmp_path, damage):
    resume_log = ResumeLog(tmp_path, "x", {})
    for position in range(3):
        resume_log.write(position, {"value": np.full(4, position)})
    resume_log.close()
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    if damage == "cut":
        del data[-3:]
    else:
        data[-3] ^= 1
    file.write_bytes(bytes(data))
    again = ResumeLog(tmp_path, "x", {})
    assert sorted(again.finished()) == [0, 1]
    again.write(2, {"value": np.arange(4)})
    found = again.finished()
    np.testing.assert_array_equal(found[2]["value"], np.arange(4))
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another --out"):
        ResumeLog(tmp_path / "file", "x", {})


def test_time_is_accounted():
    eval_loop = EvalLoop()
    eval_loop.run("x", evaluator(), FakeSamples(), SingleImageScorer(one_value))
    assert set(eval_loop.seconds) == {"wait", "score", "measure"}
