"""The real Label Studio: a project, our backend, a click, a mask.

Label Studio pins many packages, so it lives in an environment of its own: SEMSAM_JAX_LABEL_STUDIO
names its executable. Without it the test is skipped.

    python -m venv ls && ls/bin/pip install label-studio
    SEMSAM_JAX_LABEL_STUDIO=ls/bin/label-studio python -m pytest -m nightly tests/adapters
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.adapters.test_label_studio import BRUSH, HW, PNG, keypoint
from tests.adapters.test_label_studio_brush import decode

EXECUTABLE = os.environ.get("SEMSAM_JAX_LABEL_STUDIO")
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(EXECUTABLE is None, reason="SEMSAM_JAX_LABEL_STUDIO is not set"),
]
TOKEN = "1234567890abcdef1234567890abcdef12345678"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(url, body=None, method=None, kind="application/json"):
    headers = {"authorization": f"Token {TOKEN}", "content-type": kind}
    content = json.dumps(body).encode() if isinstance(body, dict | list) else body
    request = urllib.request.Request(url, content, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        pytest.fail(f"{url}: {error.code} {error.read()[:600]}")


def wait_for(url, process, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None, "it ended"
        try:
            return urllib.request.urlopen(url, timeout=10).read()
        except OSError:
            time.sleep(1)
    pytest.fail(f"{url} did not answer within {seconds} s")


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("label_studio"), free_port()
    about = {"LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true", "COLLECT_ANALYTICS": "false"}
    about |= {"LATEST_VERSION_CHECK": "false", "SENTRY_DSN": "", "HOME": str(folder)}
    # By default it refuses backends on this machine, and webhooks to them.
    about |= {"USE_DEFAULT_BANNED_SUBNETS": "false"}
    command = [EXECUTABLE, "start", "--no-browser", "--port", str(port)]
    command += ["--data-dir", str(folder / "data"), "--username", "a@b.example"]
    command += ["--password", "a-long-password", "--user-token", TOKEN]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | about, start_new_session=True
        )
    try:
        # Its first start makes a database in some hundred steps.
        wait_for(f"http://127.0.0.1:{port}/health", process, 1800)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@pytest.fixture(scope="module")
def backend(checkpoint, studio, tmp_path_factory):
    port = free_port()
    command = [sys.executable, "-m", "semsam_jax", "demo", "--port", str(port)]
    command += ["--checkpoint", str(checkpoint), "--label-studio-url", studio]
    about = {"LABEL_STUDIO_API_KEY": TOKEN, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=os.environ | about)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, 600)
        yield f"http://127.0.0.1:{port}/label-studio"
    finally:
        process.terminate()
        process.wait(60)


def test_a_click_in_label_studio_becomes_a_mask(studio, backend):
    config = BRUSH.replace("$picture", "$image")
    project = ask(f"{studio}/api/projects", {"title": "click", "label_config": config})
    number = project["id"]
    border = "xxxxboundaryxxxx"
    form = (
        f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    ).encode() + PNG
    form += f"\r\n--{border}--\r\n".encode()
    kind = f"multipart/form-data; boundary={border}"
    ask(f"{studio}/api/projects/{number}/import", form, kind=kind)
    tasks = ask(f"{studio}/api/tasks?project={number}")
    task = (tasks["tasks"] if isinstance(tasks, dict) else tasks)[0]
    about = {"project": number, "url": backend, "title": "Semantic-SAM", "is_interactive": True}
    connected = ask(f"{studio}/api/ml", about)
    state = ask(f"{studio}/api/ml/{connected['id']}")
    assert state["state"] == "CO", state  # connected
    body = {"task": task["id"], "context": {"result": [keypoint(35, 50)]}}
    answer = ask(f"{studio}/api/ml/{connected['id']}/interactive-annotating", body)
    assert not answer.get("errors"), answer
    (region,) = answer["data"]["result"]
    assert region["value"]["brushlabels"] == ["Dog"]
    assert (decode(region["value"]["rle"], HW)[..., 3] > 0).any()
    # What Label Studio stores, it can export again.
    ask(f"{studio}/api/tasks/{task['id']}/annotations", {"result": [region]})
    exported = ask(f"{studio}/api/projects/{number}/export?exportType=JSON")
    assert exported[0]["annotations"][0]["result"][0]["value"]["rle"] == region["value"]["rle"]
