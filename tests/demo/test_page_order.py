"""The page when answers are slow or the server has forgotten, in a real browser (`test_page`)."""

import json

import pytest

from tests.demo.conftest import encoded, picture
from tests.demo.visitor import IMAGE_HW, NEEDS_BROWSER, Page

pytestmark = NEEDS_BROWSER


class Held:
    """Requests of a path that the server has not yet received."""

    def __init__(self, page, path):
        self.page, self.path, self.routes = page, f"**/api/{path}", []
        page.route(self.path, lambda route: self.routes.append(route))

    def wait(self, number):
        for _ in range(200):
            if len(self.routes) >= number:
                return self.routes
            self.page.wait_for_timeout(50)
        pytest.fail(f"{len(self.routes)} requests for {self.path} came; wanted {number}")

    def release(self):
        for route in self.routes:
            route.continue_()
        self.page.unroute(self.path)


def put(visitor, name, height=IMAGE_HW[0]):
    """Chooses an image, waits for nothing."""
    file = {"name": name, "mimeType": "image/jpeg"}
    content = encoded(picture(height, IMAGE_HW[1]))
    visitor.page.set_input_files("#file", file | {"buffer": content})


def keep(visitor, *place):
    visitor.click(*place)
    visitor.press("[data-do=keep]", "")


def dialogs(page):
    """The questions of the page, which are all answered with no."""
    texts = []

    def answer(dialog):
        texts.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", answer)
    return texts


def test_undo_shows_no_mask_of_other_clicks(browser, server):
    visitor = Page(browser, server, "desktop")
    visitor.choose(encoded(picture(*IMAGE_HW)))
    visitor.click(0.35, 0.5)
    page = visitor.page
    held = Held(page, "click")
    for number, place in enumerate([(0.4, 0.5), (0.75, 0.4)], start=1):
        page.mouse.click(*visitor.at(*place))
        held.wait(number)
    page.click("[data-do=undo]")  # the answer to the first two clicks never came
    again = held.wait(3)[2].request.post_data_json
    assert len(again["points"]) == 2
    assert not visitor.captions()
    assert page.is_disabled("[data-do=keep]")
    held.release()
    visitor.wait("Answered")
    assert len(visitor.captions()) == 6
    page.click("[data-do=undo]")  # that of the first did: it is shown at once
    assert len(visitor.captions()) == 6
    visitor.finish(server)


def test_of_two_images_the_one_chosen_last_is_shown(browser, server):
    visitor = Page(browser, server, "desktop")
    visitor.choose(encoded(picture(*IMAGE_HW)))
    page = visitor.page
    held = Held(page, "image")
    put(visitor, "slow.jpg", 200)
    held.wait(1)
    put(visitor, "fast.jpg")
    slow, fast = held.wait(2)
    fast.continue_()
    visitor.wait_for_status("Ready")  # the page stays busy
    with page.expect_response("**/api/forget"):
        with page.expect_response("**/api/image") as waiting:
            slow.continue_()
        key = waiting.value.json()["image"]
    page.unroute(held.path)
    assert server.post("encode", {"image": key}).status == 410  # no memory is taken by it
    assert visitor.status.startswith("Ready")
    visitor.click(0.35, 0.5)
    assert json.loads(visitor.download("labelme")[1])["imagePath"] == "fast.jpg"
    visitor.finish(server)


def test_masks_that_are_in_no_download_are_asked_about(browser, server):
    visitor = Page(browser, server, "desktop")
    visitor.choose(encoded(picture(*IMAGE_HW)))
    page, texts = visitor.page, dialogs(visitor.page)
    keep(visitor, 0.35, 0.5)
    visitor.press("#clear-all", "All kept masks removed")
    visitor.click(0.75, 0.4)
    visitor.download("coco")  # not of what was kept
    page.click("[data-do=undo]")
    page.click("[data-do=undo]")
    assert visitor.kept() == 1
    put(visitor, "other.jpg")
    page.wait_for_timeout(300)
    assert len(texts) == 1
    assert "not downloaded: 1." in texts[0]
    assert visitor.kept() == 1
    visitor.download("coco")
    held = Held(page, "image")
    put(visitor, "other.jpg")  # all are downloaded: nothing to ask
    held.wait(1)
    visitor.hush()
    page.mouse.click(*visitor.at(0.75, 0.4))  # while the other image is on its way
    visitor.wait_for_status("Answered")
    page.keyboard.press("k")
    held.release()
    visitor.wait("other.jpg was not opened")
    assert len(texts) == 2
    assert visitor.kept() == 2
    visitor.finish(server)
