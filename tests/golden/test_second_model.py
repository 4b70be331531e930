"""A second model of the original, other sizes everywhere, through the doors that users take.

`second_ref.pth` has odd depths, another window, as many encoder inputs as maps and five levels, a
decoder narrower than the pixel decoder, other numbers of heads, and its own pixel statistics; the
image is 45 x 77. Recorded from the original on a CPU, like the rest of `data`.
"""

import json

import jax
import numpy as np
import pytest

from semsam_jax.__main__ import main
from semsam_jax.core.errors import ConversionError
from semsam_jax.inference.loading import load_model
from semsam_jax.inference.mask_generator import MaskGenerator
from semsam_jax.inference.predictor import Predictor
from semsam_jax.inference.requests import Request
from tests.inference.conftest import DATA


@pytest.fixture(scope="module")
def data():
    return np.load(DATA / "second.npz")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("second")
    config = str(DATA / "second_config.json")
    code = main(
        ["convert", str(DATA / "second_ref.pth"), "--model-config", config, "--out", f"{out}"]
    )
    assert code == 0
    return load_model(out, prompt_preset="released_v1")


@pytest.fixture(scope="module", params=["alone", "joint"])
def predictor(request, model, data):
    predictor = Predictor(model, size="native", isolate=request.param == "alone")
    predictor.set_image(data["image"])
    return request.param, predictor


def by_token(answers, field):
    return np.concatenate(
        [np.asarray(getattr(a, field))[[a.tokens.index(t) for t in range(6)]] for a in answers]
    )


def test_features(predictor, data):
    pyramid = predictor[1].pyramid
    assert len(pyramid.levels) == 5
    for i, level in enumerate((*pyramid.levels, pyramid.mask_features)):
        want = data["mask_features" if i == 5 else f"level{i}"]
        np.testing.assert_allclose(np.asarray(level).transpose(0, 3, 1, 2), want, atol=5e-5)


def test_clicks(predictor, data):
    kind, predictor = predictor
    points = data["points"].astype(np.float64) * [77, 45]
    found = predictor.predict_many([Request([p]) for p in points], return_logits=True)
    want = data[f"{kind}/masks"][:, :45, :77]
    np.testing.assert_allclose(by_token(found, "masks"), want, atol=1e-3)
    np.testing.assert_allclose(by_token(found, "scores"), data[f"{kind}/ious"].ravel(), atol=5e-5)


def test_box(predictor, data):
    cx, cy, w, h = data["box/cxcywh"][0].astype(np.float64) * [77, 45, 77, 45]
    box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
    found = predictor[1].predict(box=box, return_logits=True)
    want = data["box/masks"][:, :45, :77]
    np.testing.assert_allclose(by_token([found], "masks"), want, atol=1e-3)
    np.testing.assert_allclose(by_token([found], "scores"), data["box/ious"].ravel(), atol=5e-5)


def test_everything(model, data):
    """With the original's batches, in which clicks see each other."""
    settings = json.loads(str(data["amg/params"]))
    generator = MaskGenerator(model, **settings, size="native", isolate=False)
    found = generator.generate(data["image"])
    masks = np.unpackbits(data["amg/masks"], axis=-1, count=77).astype(bool)
    assert len(found) == len(masks) > 10
    changed = [(r["segmentation"] != mask).sum() for r, mask in zip(found, masks, strict=True)]
    assert max(changed) <= 3  # a logit on the threshold may fall on either side
    for key, atol in (("predicted_iou", 5e-5), ("stability_score", 2e-3), ("bbox", 0)):
        got = np.array([np.ravel(record[key]) for record in found])
        np.testing.assert_allclose(got, data[f"amg/{key}"], atol=atol, err_msg=key)


def test_the_file_itself_is_a_checkpoint(model):
    path = DATA / "second_ref.pth"
    direct = load_model(path, model_config=DATA / "second_config.json")
    jax.tree.map(np.testing.assert_array_equal, direct.params, model.params)
    assert direct.meta == {k: v for k, v in model.meta.items() if k != "schema_version"}
    with pytest.raises(ConversionError, match=r"no preset has these sizes.*--model-config"):
        load_model(path)
