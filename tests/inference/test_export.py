import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from jax import export
from PIL import Image

from semsam_jax.core.errors import CheckpointError, PromptError
from semsam_jax.inference.export import export_model
from semsam_jax.inference.exported import ExportedModel
from semsam_jax.inference.loading import model_from_params
from semsam_jax.inference.predictor import Predictor
from tests.inference.conftest import tiny_meta

SCRIPT = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("semsam_jax.models", "flax")):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Block())
import numpy as np
from semsam_jax.inference.exported import ExportedModel

model = ExportedModel(sys.argv[1])
found = model.segment(sys.argv[2], [[50, 60], [20, 30], [90, 90]])
np.savez(sys.argv[3], masks=found.masks, scores=found.scores)
"""


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "programs"
    return export_model(tiny_model, folder, [(128, 160)], [1, 2], ("cpu", "tpu", "cuda"))


def test_programs_run_without_the_model_code(exported, tiny_model, image_a, tmp_path):
    Image.fromarray(image_a).save(tmp_path / "a.png")
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, exported, tmp_path / "a.png", tmp_path / "out.npz"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=".")
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "out.npz")
    predictor = Predictor(tiny_model, size="native")
    predictor.set_image(image_a)
    for i, point in enumerate([[50, 60], [20, 30], [90, 90]]):
        answer = predictor.predict(point_coords=[point])
        np.testing.assert_allclose(found["scores"][i], answer.scores, atol=1e-4)
        assert (found["masks"][i] != answer.masks).mean() < 1e-3


def test_manifest_lists_the_programs(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert [p["file"] for p in manifest["programs"]] == [
        f"{platform}/{name}.jaxexport"
        for platform in ("cpu", "tpu", "cuda")
        for name in ("encode_128x160", "decode_128x160_p1", "decode_128x160_p2")
    ]
    assert manifest["platforms"] == ["cpu", "tpu", "cuda"]


def test_every_platform_has_the_programs_that_suit_it(exported):
    """Deformable attention is written differently for CPUs and for accelerators."""
    texts = {}
    for platform in ("cpu", "tpu", "cuda"):
        data = (exported / platform / "encode_128x160.jaxexport").read_bytes()
        program = export.deserialize(bytearray(data))
        assert program.platforms == (platform,)
        texts[platform] = program.mlir_module()
    assert texts["cpu"].count("stablehlo.gather") != texts["cuda"].count("stablehlo.gather")


def test_what_cannot_be_exported_or_run(exported, tiny_model, tmp_path):
    with pytest.raises(PromptError, match="exists"):
        export_model(tiny_model, exported, [(64, 64)], [1], ("cpu",))
    with pytest.raises(CheckpointError, match="export"):
        ExportedModel(tmp_path)
    with pytest.raises(CheckpointError, match="128, 160"):
        ExportedModel(exported).encode(np.zeros((64, 64, 3), np.uint8), (64, 64))


def test_a_guided_mask_keeps_its_click_as_that_of_the_predictor(tiny_params, image_a, tmp_path):
    config, params = tiny_params
    config = dataclasses.replace(config, guided_upsampling=True)
    model = model_from_params(params, tiny_meta(config, prompt_preset="default"))
    folder = export_model(model, tmp_path / "programs", [(128, 128)], [16], ("cpu",))
    image = np.random.default_rng(0).permutation(image_a.reshape(-1, 3)).reshape(image_a.shape)
    points = np.random.default_rng(1).uniform(5, 125, (16, 2)).tolist()
    found = ExportedModel(folder).segment(image, points)
    predictor = Predictor(model)
    predictor.set_image(image)
    for masks, answer in zip(
        found.masks, predictor.predict_many([{"point_coords": [p]} for p in points]), strict=True
    ):
        np.testing.assert_array_equal(masks, answer.masks)


def test_masks_of_a_small_box_end_where_the_predictor_ends_them(tiny_params, image_a, tmp_path):
    """One cell of the logits is many pixels of a large image, and the guided filter spreads it."""
    config, params = tiny_params
    decoder = dataclasses.replace(config.decoder, box_margin=1.05)
    config = dataclasses.replace(config, decoder=decoder, guided_upsampling=True)
    model = model_from_params(params, tiny_meta(config, prompt_preset="default"))
    folder = export_model(model, tmp_path / "programs", [(128, 128)], [2], ("cpu",))
    image = np.asarray(Image.fromarray(image_a).resize((800, 800)))
    boxes = [[100.0, 100.0, 140.0, 150.0], [100.0, 80.0, 500.0, 600.0]]
    found = ExportedModel(folder).segment(image, [[200, 300]], boxes)
    predictor = Predictor(model)
    predictor.set_image(image)
    for masks, answer in zip(found.masks[1:], predictor.predict(box=boxes).answers, strict=True):
        assert answer.masks.any()
        np.testing.assert_array_equal(masks, answer.masks)
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    assert content.pop("box_margin") == 1.05
    manifest.write_text(json.dumps(content))  # as earlier versions wrote it
    earlier = ExportedModel(folder).segment(image, boxes=boxes)
    assert (earlier.masks[0] & ~found.masks[1]).any()
