"""The web page of ONNX exports in a real browser, with a runtime that answers at once."""

import json
import os
from pathlib import Path

import pytest

from semsam_jax.inference import export

CHROMIUM = Path("/usr/bin/chromium")
PHOTO = Path(__file__).parents[1] / "data" / "chelsea.jpg"
ADDRESS = "http://page.test/"
RUNTIME = """
export const env = { wasm: {} };
export class Tensor { constructor(type, data, dims) { Object.assign(this, { data, dims }); } }
const answer = {
  mask_logits: { dims: [1, 1, 1, 8, 8], data: new Float32Array(64).fill(1) },
  pred_ious: { data: [0.9] },
};
export const InferenceSession = { create: async () => ({ run: async () => answer }) };
"""
MANIFEST = {
    "programs": [
        {"file": "encoder.onnx", "canvas_hw": [32, 32]},
        {"file": "decoder.onnx", "canvas_hw": [32, 32], "num_prompts": 1},
    ],
    "level_order": [0],
    "prompt_preset": "default",
    "guided_upsampling": False,
}
pytestmark = pytest.mark.skipif(
    not (CHROMIUM.exists() or os.environ.get("SEMSAM_JAX_REQUIRE_BROWSER")),
    reason=f"no {CHROMIUM}: `apt-get install chromium` to test the page",
)


@pytest.fixture
def visit():
    """The page, and its request for the manifest, which is not yet answered."""
    from playwright.sync_api import sync_playwright

    content = Path(export.__file__).with_name(export.PAGE).read_text()
    headers = {"access-control-allow-origin": "*"}
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.set_default_timeout(60_000)
        manifests = []
        page.route(ADDRESS, lambda r: r.fulfill(body=content, content_type="text/html"))
        page.route(
            "**/*.mjs",
            lambda r: r.fulfill(body=RUNTIME, content_type="text/javascript", headers=headers),
        )
        page.route("**/manifest.json", lambda route: manifests.append(route))
        page.goto(ADDRESS)
        for _ in range(500):
            if not manifests:
                page.wait_for_timeout(20)
        yield page, manifests[0]
        browser.close()


def wait(page, text):
    page.wait_for_function(
        "text => document.getElementById('status').textContent.includes(text)", arg=text
    )


def test_an_image_chosen_early_is_opened_when_the_model_is_ready(visit):
    page, manifest = visit
    page.set_input_files("#file", PHOTO)
    wait(page, "The image is opened when it is ready")
    manifest.fulfill(body=json.dumps(MANIFEST))
    wait(page, "encoded")
    page.click("#marks")
    wait(page, "Level 1, predicted IoU 0.90")


def test_without_a_model_the_page_says_what_to_do(visit):
    page, manifest = visit
    page.set_input_files("#file", PHOTO)
    manifest.fulfill(status=404, body="nothing")
    wait(page, "The model cannot be loaded")
    other = {"name": "other.jpg", "mimeType": "image/jpeg", "buffer": PHOTO.read_bytes()}
    page.set_input_files("#file", other)
    page.wait_for_timeout(300)
    assert "The model cannot be loaded" in page.inner_text("#status")
