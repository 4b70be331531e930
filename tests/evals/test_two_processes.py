"""Two processes with two devices each find what one process with one device finds."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from semsam_jax.evals.generic import evaluate_generic
from semsam_jax.evals.one_click import evaluate_one_click
from tests.evals.fakes import ReadingGeneric, ReadingModel, reading_sample
from tests.evals.test_generic import CLASSES, TEXT, labelled
from tests.evals.test_one_click import SEGMENTS

CLICKED = [
    reading_sample(np.roll(SEGMENTS, shift, axis=1), image_id=f"im{shift}") for shift in range(7)
]
LABELLED = [
    labelled(image_id=str(i), object_ids=[10, 11, 12] if i % 2 else [11, 10, 12]) for i in range(5)
]


@pytest.mark.nightly
def test_two_processes(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.evals.two_process_worker", f"127.0.0.1:{port}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(
            [*command, str(index), str(tmp_path)],
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        for index, process in enumerate(processes):
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output[-3000:]
            assert f"process {index} ok" in output
    finally:
        for process in processes:
            process.kill()
    clicks = evaluate_one_click(ReadingModel(), {}, CLICKED)
    generic = evaluate_generic(ReadingGeneric(), {}, TEXT, LABELLED, CLASSES)
    assert 0 < generic.mask_ap.ap < 1
    for index in range(2):
        found = json.loads((tmp_path / f"result-{index}.json").read_text())
        assert found["clicks"] == clicks.scalars()
        assert found["rows"] == clicks.table.iou.tolist()
        assert found["generic"] == pytest.approx(generic.scalars(), nan_ok=True, abs=0, rel=0)
    assert not list((tmp_path / "progress").iterdir())
