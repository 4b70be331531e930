"""All masks of an image: how many there are, their thresholds, and what does not wait for them."""

import asyncio
import base64
import dataclasses
import functools
import threading

import numpy as np
import pytest

from semsam_jax import load_model
from semsam_jax.core import rle
from semsam_jax.demo import engine as engine_module
from semsam_jax.demo.engine import Engine
from semsam_jax.demo.executors import Executors
from semsam_jax.demo.limits import Limits
from semsam_jax.demo.server import build_app
from semsam_jax.demo.service import Service
from semsam_jax.demo.sessions import SessionStore
from semsam_jax.demo.uploads import Upload
from tests.demo.conftest import encoded, picture
from tests.demo.test_api import HW, IMAGE, masks_of


def test_masks_for_which_an_answer_has_no_room_are_counted(client, monkeypatch):
    whole = np.ones(HW, bool)
    mask = {"segmentation": rle.encode(whole), "area": whole.size, "level": 1}

    class Generator:
        names = None

        def __init__(self, model, **options):
            pass

        def generate(self, pixels):
            return [mask | {"predicted_iou": i / 1000} for i in range(270)]

    monkeypatch.setattr(engine_module, "MaskGenerator", Generator)
    answer = client.post("/v1/everything", json={"image": IMAGE, "grid": 8}).json()
    assert [round(1000 * mask["score"]) for mask in answer["masks"]] == [*range(269, 19, -1)]
    assert answer["left_out"] == 20
    upload = client.post("/api/image", content=encoded(picture(*HW))).json()
    body = {"image": upload["image"], "names": "", "level": 0, "quality": 0.5, "grid": 8}
    answer = client.post("/api/everything", json=body).json()
    assert (len(answer["masks"]), answer["left_out"]) == (250, 20)
    # A photo of 12 megapixels: only the best are enlarged to its size.
    large = base64.b64encode(encoded(picture(3000, 4000))).decode()
    most = Limits().most_masks((3000, 4000))
    for tree in (False, True):
        body = {"image": large, "grid": 8, "tree": tree}
        answer = client.post("/v1/everything", json=body).json()
        assert answer["left_out"] == 270 - most == 220
        assert len(answer["masks"]) == (1 if tree else most)  # the masks are all the same
        assert answer["masks"][0]["score"] == pytest.approx(0.269)
    body = {"image": large, "boxes": [[1, 1, 9, 9]] * 9, "level": "all"}
    answer = client.post("/v1/segment", json=body)
    assert (answer.status_code, "54 masks" in answer.json()["error"]) == (413, True)
    assert "at most 50: ask for fewer boxes or levels" in answer.json()["error"]


def test_masks_reach_the_thresholds_of_the_model_or_those_asked_for(checkpoint, monkeypatch):
    asked, model = [], load_model(checkpoint)

    class Generator:
        names = None

        def __init__(self, model, **options):
            asked.append((options["pred_iou_thresh"], options["stability_score_thresh"]))

        def generate(self, pixels):
            return []

    monkeypatch.setattr(engine_module, "MaskGenerator", Generator)
    for stored in ({"pred_iou": 0.5, "stability": 0.8}, None):
        own = dataclasses.replace(model, meta=model.meta | {"mask_thresholds": stored})
        engine = Engine(own, Limits(), SessionStore(Limits()))
        for quality in (None, 0.3):
            engine.find_everything(picture(*HW), "", None, quality, 8)
    # None is what the generator reads from the checkpoint.
    assert asked == [(None, None), (0.3, 0.3), (0.5, 0.5), (0.3, 0.3)]


def test_the_page_and_the_api_take_the_same_thresholds_by_default(checkpoint):
    model = load_model(checkpoint)
    meta = model.meta | {"mask_thresholds": {"pred_iou": 0.05, "stability": 0.9}}
    from starlette.testclient import TestClient

    app = build_app(dataclasses.replace(model, meta=meta), warm=False)
    with TestClient(app, "http://127.0.0.1") as client:
        pixels = client.post("/api/image", content=encoded(picture(*HW), "PNG")).json()["image"]
        body = {"image": pixels, "names": "", "level": 0, "grid": 8}

        def areas(**quality):
            answer = client.post("/api/everything", json=body | quality)
            assert answer.status_code == 200, answer.text
            return sorted(round(mask["area"] * HW[0] * HW[1]) for mask in answer.json()["masks"])

        masks = masks_of(client.post("/v1/everything", json={"image": IMAGE, "grid": 8}))
        found = sorted(mask["area"] for mask in masks)
        assert areas(quality=None) == pytest.approx(found, abs=1)
        assert areas() == pytest.approx(found, abs=1)
        assert len(areas(quality=0.05)) > len(found)


def test_names_used_before_do_not_wait_for_a_whole_image(checkpoint):
    limits, hold = Limits(slow_per_client=1), threading.Event()
    sessions = SessionStore(limits)
    engine = Engine(load_model(checkpoint), limits, sessions)
    session = sessions.get(sessions.add(Upload(picture(*HW), HW), "a"))

    async def scenario():
        executors = Executors(limits)
        service = Service(engine, sessions, executors, limits)
        busy = [asyncio.create_task(service.slow("a", hold.wait))]
        await asyncio.sleep(0.01)
        try:
            for names in ("dog; head", " head; dog", "dog, cat"):  # new, known, one of each
                known = await asyncio.wait_for(service.learn(names, "a"), 60)
                work = functools.partial(engine.click, session, [[56.0, 60.0, 1.0]], [], known)
                click = service.quick("a", work)
                assert (await asyncio.wait_for(click, 60))["masks"][0]["object"]
            busy.append(asyncio.create_task(executors.run("names", "a", hold.wait)))
            await asyncio.sleep(0.01)
            assert await service.learn("cat; head", "a") == "cat; head"
        finally:
            hold.set()
            await asyncio.gather(*busy)
            executors.close()

    asyncio.run(scenario())
