"""The real `cvat-cli`, against as much of a server as it asks for: it loads, checks and runs the
functions, and sends what CVAT would store.

    pip install cvat-cli && python -m pytest -m nightly tests/adapters
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo.conftest import encoded, picture

pytest.importorskip("cvat_cli", reason="pip install cvat-cli")

from cvat_sdk.masks import decode_mask

from tests.adapters.fake_cvat import FUNCTION, TASK, FakeCvat

pytestmark = pytest.mark.nightly
HW = (120, 160)
FILE = encoded(picture(*HW), "PNG")
ROOT = Path(__file__).parents[2]


def cvat_cli(cvat, home, *arguments):
    about = {"CVAT_ACCESS_TOKEN": "token", "HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cvat_cli", "--server-host", cvat.url, *arguments]
    answer = subprocess.run(
        command, env=os.environ | about, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    print(answer.stderr)  # shown if the test fails
    return answer.stdout


@pytest.mark.parametrize("by", ["--function-module", "--function-file"])
def test_all_images_of_a_task_are_labelled(checkpoint, tmp_path, by):
    where = "semsam_jax.adapters.cvat"
    if by == "--function-file":
        where = str(ROOT / "semsam_jax" / "adapters" / "cvat.py")
    settings = {"checkpoint": f"str:{checkpoint}", "points_per_side": "int:4"}
    settings |= {"pred_iou_thresh": "float:0", "stability_score_thresh": "float:0"}
    parameters = [f"-p{key}={value}" for key, value in settings.items()]
    with FakeCvat(FILE, HW, [("car", "any"), ("object", "mask")]) as cvat:
        cvat_cli(cvat, tmp_path, "task", "auto-annotate", str(TASK), by, where, *parameters)
    shapes = cvat.received[f"/api/tasks/{TASK}/annotations"]["shapes"]
    assert shapes
    for shape in shapes:
        assert (shape["type"], shape["frame"], shape["label_id"]) == ("mask", 0, 101)
        assert shape["source"] == "auto"
        assert decode_mask(shape["points"], image_width=HW[1], image_height=HW[0]).any()


def test_an_agent_answers_a_click(checkpoint, tmp_path):
    function = ["--function-module", "semsam_jax.adapters.cvat_click"]
    function += [f"-pcheckpoint=str:{checkpoint}", "-plevel=str:best"]
    request = {"type": "interact", "task": TASK, "frame": 0, "pos_points": [[56, 60]]}
    request |= {"neg_points": [[150, 110]], "obj_bbox": []}
    with FakeCvat(FILE, HW, [("object", "mask")]) as cvat:
        number = cvat_cli(cvat, tmp_path, "function", "create-native", "Semantic-SAM", *function)
        assert int(number) == FUNCTION
        assert cvat.received["/api/functions"]["kind"] == "interactor"
        cvat.waiting.append({"ar_id": "one", "ar_params": request})
        cvat_cli(cvat, tmp_path, "function", "run-agent", str(FUNCTION), "--burst", *function)
    queue = f"/api/functions/queues/function:{FUNCTION}/requests/one"
    (shape,) = cvat.received[f"{queue}/complete"]["shapes"]
    assert shape["type"] == "mask"
    assert decode_mask(shape["points"], image_width=HW[1], image_height=HW[0]).any()
