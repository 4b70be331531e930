import dataclasses
import http.client
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semsam_jax.core.model_files import save_model
from semsam_jax.models import presets
from tests.conftest import COMPILE_QUICKLY
from tests.demo.visitor import CHROMIUM, FLAGS
from tests.inference.conftest import generic_params, tiny_meta


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self):
        return json.loads(self.content)


@dataclasses.dataclass
class Server:
    """A running demo and a plain client for it."""

    process: subprocess.Popen
    port: int
    folder: Path

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def send(self, method, path, body=b"", headers=None, source="127.0.0.1"):
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=120, source_address=(source, 0)
        )
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def post(self, path, body, source="127.0.0.1"):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", f"/api/{path}", content, source=source)

    def upload(self, content, source="127.0.0.1"):
        answer = self.post("image", content, source)
        assert answer.status == 200, answer.content
        return answer.json["image"]

    def memory_mb(self, field="VmRSS"):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+)", text).group(1)) / 1024


def picture(height=120, width=160, seed=0):
    """An image-like picture: a bright disc and a dark box over a slope."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 90)], -1)
    image[(x - width * 0.35) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2] = (240, 220, 60)
    image[height // 4 : height // 2, 2 * width // 3 : 5 * width // 6] = (30, 20, 60)
    return np.clip(image + rng.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny model that answers clicks, names and whole images."""
    config = presets.PRESETS["tiny"]
    params = generic_params()
    changes = {"class_heads_trained": True, "prompt_preset": "default", "image_size": 96}
    folder = tmp_path_factory.mktemp("demo_checkpoint")
    save_model(folder, params, tiny_meta(config, **changes))
    return folder


@pytest.fixture(scope="session")
def client(checkpoint):
    """The application in this process, without sockets."""
    from starlette.testclient import TestClient

    from semsam_jax import load_model
    from semsam_jax.demo.limits import Limits
    from semsam_jax.demo.server import ServerSettings, build_app

    limits = Limits(upload_bytes=8 << 20)
    settings = ServerSettings(title="tiny model")
    app = build_app(load_model(checkpoint), limits, settings, warm=False)
    with TestClient(app, "http://127.0.0.1", raise_server_exceptions=False) as found:
        yield found


@pytest.fixture(scope="session")
def server(checkpoint, tmp_path_factory):
    """`python -m semsam_jax demo` in a process of its own, on a free port."""
    folder = tmp_path_factory.mktemp("demo_server")
    for name in ("home", "tmp", "cwd"):
        (folder / name).mkdir()
    environment = os.environ | {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    environment |= COMPILE_QUICKLY
    environment.setdefault("SEMSAM_JAX_CACHE", str(folder / "cache"))
    command = [sys.executable, "-m", "semsam_jax", "demo", "--port", "0"]
    command += ["--checkpoint", str(checkpoint), "--max-upload-mb", "8"]
    with (folder / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            command,
            cwd=folder / "cwd",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    line = process.stdout.readline()
    while line.startswith("checkpoint:"):
        line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
    assert found, line + (folder / "errors.txt").read_text()
    yield Server(process, int(found.group(1)), folder)
    process.terminate()
    assert process.wait(60) is not None
    process.stdout.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    assert Path(CHROMIUM).exists(), f"{CHROMIUM} is missing: `apt-get install chromium`"
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    folder = os.environ.get("SEMSAM_JAX_SCREENSHOTS")
    path = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path
