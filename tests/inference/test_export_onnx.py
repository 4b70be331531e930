"""Exported ONNX models under onnxruntime, beside the network itself."""

import argparse
import dataclasses
import functools
import http.server
import importlib.util
import json
import shutil
import subprocess
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from semsam_jax.core.errors import ConfigError, PromptError
from semsam_jax.inference import export
from semsam_jax.inference.export import ONNX, export_model
from semsam_jax.inference.export_onnx import to_onnx
from semsam_jax.inference.exported import ExportedModel
from semsam_jax.inference.guided import inside_box
from semsam_jax.inference.loading import load_model, model_from_params
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.programs import Program, programs
from semsam_jax.models import presets
from semsam_jax.models.semantic_sam import SemanticSAM, init_params
from tests.inference.conftest import tiny_meta
from tests.models.random_params import random_params

PHOTO = Path(__file__).parents[1] / "data" / "chelsea.jpg"
CHROMIUM = Path("/usr/bin/chromium")


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString())


def both(function, *arrays) -> tuple[dict, dict]:
    """Results of a function of no parameters, by JAX and by onnxruntime."""
    inputs = {f"x{i}": jax.ShapeDtypeStruct(x.shape, x.dtype) for i, x in enumerate(arrays)}
    program = Program("test", lambda params, *x: function(*x), inputs, {})
    session = session_of(to_onnx(program, {}))
    names = [one.name for one in session.get_outputs()]
    got = session.run(None, dict(zip(inputs, arrays, strict=True)))
    return dict(zip(names, got, strict=True)), jax.device_get(jax.jit(function)(*arrays))


def everything_that_networks_do(x, index, kernel):
    """Operations that the models have, at odd sizes, with operands that repeat."""
    y = jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0)))[:, ::2, 1:]
    y = jax.nn.gelu(y, approximate=False) + jax.nn.softplus(y) * jax.nn.sigmoid(y) ** 3
    y = jnp.where(y > 0.5, jnp.log1p(jnp.abs(y)), jnp.sin(y) - jnp.cos(y))
    y = jnp.roll(y, 1, axis=1) / (1 + jnp.square(y))
    convolved = jax.lax.conv_general_dilated(
        x, kernel, (2, 1), ((1, 0), (2, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    # Elements of a table by two axes and a batch axis.
    rows = jax.vmap(lambda t, i: t.at[i[:, 0], i[:, 1]].get(mode="promise_in_bounds"))(x, index)
    _, scanned = jax.lax.scan(
        lambda sum, row: (sum + row, sum * row), jnp.zeros(3), jnp.arange(12.0).reshape(4, 3)
    )
    grown, _ = jax.lax.scan(lambda a, b: (a @ b, None), rows[0], jnp.ones((2, 3, 3)) / 3)
    return {
        "y": y,
        "convolved": convolved,
        "rows": rows,
        "product": jnp.einsum("bhwc,bnc->whbn", x, rows),
        "scanned": scanned + rows[0, :3, None].sum(),
        "grown": grown,
        "repeated": jnp.broadcast_to(rows[:, :1], rows.shape),
        "known": jnp.arange(5) * 2,
        "inside": jnp.clip(index, 1, 3) + jnp.max(index, axis=1, keepdims=True),
        "split": jnp.concatenate(jnp.split(x, 3, axis=-1)[::-1], -1),
    }


def test_operations_agree():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
    index = rng.integers(0, 5, (2, 4, 2)).astype(np.int32)
    kernel = rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    got, wanted = both(everything_that_networks_do, x, index, kernel)
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == array.dtype
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: {"y": jnp.sort(x)}, "sort"),
        (lambda x: {"y": x.at[x[:, 0].astype(int)].get(mode="fill")}, "indexing"),
        (lambda x: {"y": x.astype(jnp.int32) & 3}, "And"),
    ],
)
def test_what_has_no_form_is_named(function, operation):
    with pytest.raises(ConfigError, match=f"{operation}.*stablehlo"):
        both(function, np.zeros((3, 3), np.float32))


def compare(model, folder, image, points):
    """Compares an exported folder with the network: both programs, and masks.

    The image has the size of the canvas; the last prompt of the programs is a box.
    """
    exported = ExportedModel(folder)
    frame = exported.frame(image.shape[:2])
    boxes, types = frame.click_boxes(np.array(points, np.float64)), np.zeros(len(points), np.int32)
    boxes[-1, 2:], types[-1] = 0.4, frame.box_type()
    encode, decode = programs(model, frame.canvas_hw, [len(points)])
    with jax.default_matmul_precision("highest"):
        wanted = jax.jit(encode.function)(model.params, image[None], np.array([frame.resized_hw]))
        answer = jax.jit(decode.function)(model.params, wanted, boxes[None], types[None])
    pyramid = exported.encode(image, frame.resized_hw)
    found = exported.decode(pyramid, boxes, types)
    assert (pyramid.keys(), found.keys()) == (wanted.keys(), answer.keys())
    for name, array in wanted.items():
        np.testing.assert_allclose(pyramid[name], array, rtol=1e-5, atol=1e-3, err_msg=name)
    for name, array in answer.items():
        np.testing.assert_allclose(found[name], array[0], rtol=1e-5, atol=1e-3, err_msg=name)
    boxes = [[5, 10, 60, 80], [20, 15, 110, 100]]
    masks = exported.segment(image, points, boxes)
    assert len(masks.masks) == len(masks.scores) == len(points) + len(boxes)
    predictor = Predictor(model, size="native")
    predictor.set_image(image)
    prompts = [{"point_coords": [point]} for point in points] + [{"box": box} for box in boxes]
    for i, prompt in enumerate(prompts):
        segments = predictor.predict(**prompt)
        np.testing.assert_allclose(masks.scores[i], segments.scores, atol=1e-3)
        assert (masks.masks[i] != segments.masks).mean() < 1e-3
        assert segments.masks.any()


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "out"
    return export_model(tiny_model, folder, [(128, 160)], [2], (ONNX,))


def test_a_model_agrees(tiny_model, exported, image_a):
    compare(tiny_model, exported, image_a, [[50, 60], [90, 90]])


def test_the_manifest_names_what_goes_in_and_comes_out(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    encode, decode = manifest["programs"]
    assert manifest["platforms"] == [encode["platform"]] == ["onnx"]
    assert encode["file"] == "onnx/encode_128x160.onnx"
    assert encode["inputs"] == ["image", "size_hw"]
    assert decode["inputs"] == [*encode["outputs"], "boxes", "type_index"]
    assert {"mask_logits", "pred_ious", "predicted_boxes"} < set(decode["outputs"])
    assert decode["num_prompts"] == 2
    assert (exported / "index.html").is_file()
    assert not (exported / "params.npz").exists()


def test_what_cannot_be_exported_or_asked(tiny_model, exported, tmp_path, monkeypatch):
    half = dataclasses.replace(tiny_model, module=tiny_model.module.copy(dtype=jnp.bfloat16))
    with pytest.raises(ConfigError, match="float32"):
        export_model(half, tmp_path / "out", [(64, 64)], [1], (ONNX,))
    with pytest.raises(PromptError, match="neither clicks nor boxes"):
        ExportedModel(exported).segment(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(PromptError, match="outside the image"):
        ExportedModel(exported).segment(np.zeros((64, 64, 3), np.uint8), boxes=[[0, 0, 9, 65]] * 2)
    with pytest.raises(PromptError, match="platforms"):
        run("--platforms", "cpu", "--out", tmp_path / "out")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"semsam-jax\[onnx\]"):
        export_model(tiny_model, tmp_path / "out", [(64, 64)], [1], (ONNX,))
    assert not list(tmp_path.iterdir())


def run(*args):
    """The command, with errors as exceptions."""
    parser = argparse.ArgumentParser()
    export.add_parser(parser.add_subparsers())
    words = ["export", "--format", "onnx", *map(str, args)]
    return export.run(parser.parse_args(words))


@pytest.fixture(scope="module")
def exported_lite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lite") / "out"
    run("--prompts", "1,4", "--out", folder)
    return folder


@pytest.mark.nightly
def test_the_shipped_model_agrees(exported_lite):
    ((height, width),) = ExportedModel(exported_lite).canvases
    image = np.asarray(Image.open(PHOTO).resize((width, height)))
    compare(load_model(), exported_lite, image, [[120, 150], [30, 40], [200, 90], [100, 100]])


@pytest.mark.nightly
def test_swin_t_agrees(tmp_path):
    config = dataclasses.replace(presets.PRESETS["swin_t"], text=None, has_generic=False)
    params = random_params(functools.partial(init_params, SemanticSAM(config)))
    changes = {"preset": "swin_t", "prompt_preset": "default", "image_size": 256}
    model = model_from_params(params, tiny_meta(config, **changes))
    out = export_model(model, tmp_path / "out", [(256, 256)], [2], (ONNX,))
    image = np.asarray(Image.open(PHOTO))[:256, :256]
    compare(model, out, image, [[120, 150], [30, 40]])


@pytest.fixture(scope="module")
def served(exported_lite, tmp_path_factory):
    """Address of the exported page, with the runtime of the npm registry beside it."""
    if not (CHROMIUM.exists() and shutil.which("npm")):
        pytest.skip("no Chromium or no npm here")
    folder = tmp_path_factory.mktemp("web")
    (source,) = [
        line.split('"')[1]
        for line in (exported_lite / "index.html").read_text().splitlines()
        if line.startswith("const RUNTIME")
    ]
    package = source.split("/npm/")[1].split("/")[0]
    packed = subprocess.run(["npm", "pack", package], cwd=folder, capture_output=True, text=True)
    assert not packed.returncode, packed.stderr[-500:]
    (archive,) = folder.glob("*.tgz")
    shutil.unpack_archive(archive, folder)
    shutil.copytree(exported_lite, folder / "site")
    (folder / "package" / "dist").rename(folder / "site" / "dist")
    page = folder / "site" / "index.html"
    page.write_text(page.read_text().replace(source, "./dist/"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder / "site")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


MARKED = """
(() => {
  const { width, height } = document.getElementById("marks");
  const data = document.getElementById("marks").getContext("2d").getImageData(0, 0, width, height);
  return [height, width, Array.from(data.data.filter((_, i) => i % 4 === 3), (x) => +(x > 0))];
})()
"""


@pytest.mark.nightly
def test_the_page_finds_the_masks_that_python_finds(served, exported_lite, tmp_path):
    from playwright.sync_api import sync_playwright

    image = Image.open(PHOTO)
    image.save(tmp_path / "cat.png")
    point, boxes = [200, 150], [[110, 20, 330, 280], [150, 100, 174, 120]]
    wanted = ExportedModel(exported_lite).segment(np.asarray(image), [point], boxes)
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        page.set_default_timeout(300_000)
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(served)
        status = page.locator("#status")
        page.wait_for_function(
            "document.getElementById('status').textContent != 'Loading the model …'"
        )
        assert status.text_content() == "Choose an image."
        page.set_input_files("#file", tmp_path / "cat.png")
        page.wait_for_function("document.getElementById('status').textContent.includes('encoded')")
        area = page.locator("#marks").bounding_box()
        scale = area["width"] / image.width
        for prompt in range(3):
            page.evaluate("document.getElementById('status').textContent = ''")
            if prompt == 0:
                page.mouse.click(area["x"] + point[0] * scale, area["y"] + point[1] * scale)
            else:
                x0, y0, x1, y1 = (value * scale for value in boxes[prompt - 1])
                page.mouse.move(area["x"] + x0, area["y"] + y0)
                page.mouse.down()
                page.mouse.move(area["x"] + x1, area["y"] + y1, steps=3)
                page.mouse.up()
            page.wait_for_function("document.getElementById('status').textContent.includes('ms.')")
            box = boxes[prompt - 1] if prompt else None
            check_levels(page, wanted.masks[prompt], wanted.scores[prompt], box)
        browser.close()
    assert not problems


def check_levels(page, masks, scores, box):
    """What the page shows at each level is the mask that Python finds."""
    status, with_pixels = page.locator("#status"), 0
    grown = np.ones(masks.shape[1:], bool)
    if box is not None:  # nothing spills out of it; a pixel for the rounding of the pointer
        x0, y0, x1, y1 = box
        grown = inside_box(np.array([x0 - 1, y0 - 1, x1 + 1, y1 + 1], float), 1.05, grown.shape)
    for level in range(1, 7):
        page.get_by_role("button", name=str(level), exact=True).click()
        height, width, marked = page.evaluate(MARKED)
        found = np.array(marked, bool).reshape(height, width)
        assert (found != masks[level - 1]).mean() < 2e-3, level
        assert not (found & ~grown).any(), level
        if found.any():
            score = float(status.text_content().split("IoU ")[1][:4])
            assert score == pytest.approx(scores[level - 1], abs=0.011)
            with_pixels += 1
    assert with_pixels >= 3
