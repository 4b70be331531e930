"""The parts of the demo without a server: executors, sessions, downloads, uploads."""

import asyncio
import io
import json
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from semsam_jax.core import rle
from semsam_jax.core.errors import ConfigError
from semsam_jax.demo import cli
from semsam_jax.demo.downloads import ChosenMask, make_download
from semsam_jax.demo.executors import Executors
from semsam_jax.demo.limits import HTTPError, Limits
from semsam_jax.demo.requests import read_masks
from semsam_jax.demo.sessions import ImageSession, SessionStore
from semsam_jax.demo.uploads import WORK_SIDE, Upload, read_upload
from semsam_jax.inference.visualize import distinct_colours
from tests.demo.conftest import encoded, picture

LIMITS = Limits(quick_waiting=3, quick_per_client=2, slow_waiting=2, images=4, images_per_client=2)


def record(size=100):
    return {"segmentation": {"size": [1, 1], "counts": "x" * size}}


def an_image():
    return Upload(picture(20, 30), (20, 30))


def test_executors_refuse_what_is_too_much_and_recover():
    async def scenario():
        executors, hold = Executors(LIMITS), threading.Event()
        first = [asyncio.create_task(executors.run("quick", "a", hold.wait)) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(HTTPError) as own:
            await executors.run("quick", "a", hold.wait)
        other = asyncio.create_task(executors.run("quick", "b", lambda: "b"))
        await asyncio.sleep(0.01)
        with pytest.raises(HTTPError) as full:
            await executors.run("quick", "c", lambda: "c")
        assert await executors.run("slow", "a", lambda: "slow") == "slow"
        other.cancel()  # this visitor goes away; the place is taken until the work is over
        hold.set()
        await asyncio.gather(*first)
        await asyncio.sleep(0.05)
        assert await executors.run("quick", "a", lambda: 7) == 7
        executors.close()
        return own.value.status, full.value.status

    assert asyncio.run(scenario()) == (429, 503)


def test_errors_of_the_work_arrive():
    async def scenario():
        executors = Executors(LIMITS)
        with pytest.raises(ZeroDivisionError):
            await executors.run("quick", "a", lambda: 1 / 0)
        assert await executors.run("quick", "a", lambda: 1) == 1
        executors.close()

    asyncio.run(scenario())


def test_images_are_forgotten_oldest_of_the_same_visitor_first():
    now = [0.0]
    sessions = SessionStore(LIMITS, lambda: now[0])
    keys = [sessions.add(an_image(), "a") for _ in range(2)]
    other = [sessions.add(an_image(), "b") for _ in range(2)]
    sessions.get(keys[0])
    newest = sessions.add(an_image(), "a")
    with pytest.raises(HTTPError) as gone:
        sessions.get(keys[1])
    assert gone.value.is_gone
    assert gone.value.status == 410
    for key in (*other, keys[0], newest):
        sessions.get(key)
    sessions.add(an_image(), "c")
    assert len(sessions) == LIMITS.images
    now[0] = LIMITS.image_idle_sec + 1
    sessions.forget_idle()
    assert len(sessions) == 0


def test_a_visitor_keeps_as_many_images_as_the_limits_say():
    sessions, most = SessionStore(Limits()), Limits().images_per_client
    keys = [sessions.add(an_image(), "a") for _ in range(most)]
    for key in keys:
        sessions.get(key)
    keys.append(sessions.add(an_image(), "a"))
    with pytest.raises(HTTPError, match="no longer in memory"):
        sessions.get(keys[0])
    for key in keys[1:]:
        sessions.get(key)


def test_masks_are_forgotten_when_they_take_too_much_room():
    sessions = SessionStore(LIMITS)
    session = sessions.get(sessions.add(an_image(), "a"))
    first = session.remember([record()] * 3, 5000)
    assert session.recall(first) == [record()] * 3
    second = session.remember([record(4000)], 5000)
    assert session.recall(second) == [record(4000)]
    with pytest.raises(HTTPError, match="no longer in memory"):
        session.recall(first)
    third = session.remember([record(9000)], 5000)
    assert session.recall(third)


def test_no_mask_of_a_request_is_dropped():
    assert [mask.number for mask in read_masks({"masks": [1, {"number": 2}]}, 2)] == [1, 2]
    with pytest.raises(HTTPError, match="3 masks are too many"):
        read_masks({"masks": [1, 2, 3]}, 2)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("my photo (1).jpg", "my photo (1).jpg"),
        (f"{'long' * 30}, really.jpg", f"{'long' * 30}, really.jpg"),
        ("../a\nb.jpg", ".._a_b.jpg"),
        ("\ud800.jpg", "_.jpg"),
    ],
)
def test_a_download_names_the_image_as_its_file_is_called(name, kept):
    session = ImageSession(an_image(), "a")
    mask = {"segmentation": rle.encode(np.ones((20, 30), bool)), "score": 0.5}
    masks = [ChosenMask(number) for number in session.remember([mask], 1 << 20)]
    _, _, content = make_download(session, "coco", masks, name, LIMITS)
    assert json.loads(content)["images"][0]["file_name"] == kept
    _, _, content = make_download(session, "yolo", masks, name, LIMITS)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert f"labels/{kept.removesuffix('.jpg')}.txt" in archive.namelist()


def test_files_with_a_label_map_hold_fewer_masks_of_a_large_image():
    session, whole = ImageSession(an_image(), "a"), rle.encode(np.ones((20, 30), bool))
    rows = [{"segmentation": whole, "score": 0.5}] * 4
    masks = [ChosenMask(number) for number in session.remember(rows, 1 << 20)]
    limits = Limits(download_pixels=2 * 600, download_pixels_in_turn=3 * 600)
    for kind, most in (("masks", 2), ("panoptic", 2), ("coco", 3), ("labelme", 3), ("yolo", 3)):
        assert make_download(session, kind, masks[:most], "a.jpg", limits)[2]
        with pytest.raises(HTTPError, match=f"at most {most}: keep fewer, or open a smaller copy"):
            make_download(session, kind, masks[: most + 1], "a.jpg", limits)
    assert make_download(session, "overlay", masks, "a.jpg", limits)[2]


def test_an_overlay_has_the_colours_that_are_asked_for():
    session = ImageSession(an_image(), "a")
    rows = []
    for number in range(2):
        mask = np.zeros((20, 30), bool)
        mask[:, 15 * number : 15 * number + 15] = True
        rows.append({"segmentation": rle.encode(mask), "score": 0.5})
    first, second = session.remember(rows, 1 << 20)
    body = {"masks": [{"number": first, "colour": "#ff0010"}, {"number": second}]}
    _, _, content = make_download(session, "overlay", read_masks(body, 2), "a.jpg", LIMITS)
    picture = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    pixels = session.upload.pixels.astype(int)
    for x, colour in ((7, (255, 0, 16)), (22, distinct_colours(2)[1])):
        assert np.abs(2 * picture[10, x] - pixels[10, x] - colour).max() <= 2
    for wrong in ("#ff00", "red", 7, ["#ff0010"], "#FF0010\n"):
        with pytest.raises(HTTPError, match="Invalid request"):
            read_masks({"masks": [{"number": first, "colour": wrong}]}, 2)


def test_a_panoptic_download_says_what_is_countable():
    session, rows = ImageSession(an_image(), "a"), []
    for number, (name, is_thing) in enumerate({"sky": False, "dog": True, "": None}.items()):
        mask = np.zeros((20, 30), bool)
        mask[:, 10 * number : 10 * number + 10] = True
        about = {} if is_thing is None else {"object": {"name": name}, "is_thing": is_thing}
        rows.append({"segmentation": rle.encode(mask), "score": 0.5, **about})
    masks = [ChosenMask(number) for number in session.remember(rows, 1 << 20)]
    _, _, content = make_download(session, "panoptic", masks, "a.jpg", LIMITS)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        categories = json.loads(archive.read("panoptic.json"))["categories"]
    assert {one["name"]: one["isthing"] for one in categories} == {"sky": 0, "dog": 1, "thing": 1}


def test_encoded_images_are_put_away_beyond_the_limit():
    sessions = SessionStore(Limits(feature_bytes=250))
    opened = [sessions.get(sessions.add(an_image(), str(i))) for i in range(4)]
    for session in opened:
        session.predictor = object()
        sessions.put_features_away(100)
    assert [session.predictor is not None for session in opened] == [False, False, True, True]


def test_large_images_are_made_smaller():
    image = read_upload(encoded(picture(2000, 3000)), Limits())
    assert image.original_hw == (2000, 3000)
    assert max(image.pixels.shape) == WORK_SIDE
    whole = np.asarray(picture(2000, 3000))
    assert abs(image.pixels.mean() - whole.mean()) < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_of_the_file_is_that_of_the_displayed_image(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    image = read_upload(encoded(picture(20, 30), kind, exif=exif), Limits())
    assert image.pixels.shape[:2] == image.original_hw == (30, 20)


def test_images_larger_than_the_limits_are_refused():
    for limits in (Limits(pixels=100), Limits(side=10), Limits(aspect=1.0)):
        with pytest.raises(HTTPError) as refused:
            read_upload(encoded(picture(20, 30), "PNG"), limits)
        assert refused.value.status == 413


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("lab", False)],
)
def test_only_loopback_is_local(host, is_local):
    assert cli._is_loopback(host) is is_local


def test_a_taken_port_is_told_at_once():
    with cli._listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="choose another"):
            cli._listen("127.0.0.1", port)
