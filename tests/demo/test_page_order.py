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


def choose(visitor, name="image.jpg"):
    """Opens an image; returns its key."""
    with visitor.page.expect_response("**/api/image") as waiting:
        visitor.choose(encoded(picture(*IMAGE_HW)), name)
    return waiting.value.json()["image"]


def find_everything(visitor):
    """Returns how many masks the page shows."""
    page = visitor.page
    if not page.is_visible("#grid"):
        page.click("summary")
        page.select_option("#grid", "8")
        visitor.slide("#min-score", 0)
    with page.expect_response("**/api/everything") as waiting:
        page.click("#everything")
    number = len(waiting.value.json()["masks"])
    visitor.wait(f"{number} masks in")
    assert number > 1
    return number


def dialogs(page, is_accepted=False):
    """The questions of the page, which all have the same answer."""
    texts = []

    def answer(dialog):
        texts.append(dialog.message)
        dialog.accept() if is_accepted else dialog.dismiss()

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


def test_a_mask_is_kept_once(browser, server):
    visitor = Page(browser, server, "desktop")
    choose(visitor)
    page = visitor.page
    for status in ("1 kept", "Kept already"):
        visitor.click(0.35, 0.5)
        visitor.press("[data-do=keep]", status)
    assert visitor.kept() == 1
    page.click("[data-do=undo]")  # the click is back, to be kept at another level
    assert len(visitor.captions()) == 6
    page.click("#clear-all")
    find_everything(visitor)
    page.dblclick("#result .list li >> nth=0 >> text=Keep")
    visitor.wait("Kept already")
    assert visitor.kept() == 1
    page.click("[data-do=undo]")
    assert visitor.kept() == 0
    visitor.finish(server)


def test_an_overlay_has_the_colours_of_the_page(browser, server, screenshots):
    visitor = Page(browser, server, "desktop")
    choose(visitor)
    page = visitor.page

    def sent():
        with page.expect_request("**/api/download") as waiting:
            content = visitor.download("overlay")[1]
        (screenshots / "overlay.png").write_bytes(content)
        return [mask["colour"] for mask in waiting.value.post_data_json["masks"]]

    def shown(selector, style):
        hexes = f"es => es.map((e) => getComputedStyle(e).{style}.match(/\\d+/g)"
        hexes += ".map((v) => Number(v).toString(16).padStart(2, '0')).join(''))"
        return ["#" + text for text in page.locator(selector).evaluate_all(hexes)]

    visitor.click(0.35, 0.5)
    assert sent() == shown(".level[aria-pressed=true] b", "backgroundColor")
    find_everything(visitor)
    assert sent() == shown("#result .list li i", "backgroundColor")
    page.keyboard.press("Escape")
    keep(visitor, 0.35, 0.5)
    visitor.slide("#kept-list input[type=color]", "#12ff00")
    page.screenshot(path=screenshots / "colours.png")
    assert sent() == ["#12ff00"]
    visitor.finish(server)


def test_a_cut_out_has_no_masks_of_another_answer(browser, server):
    visitor = Page(browser, server, "desktop")
    key = choose(visitor)
    number = find_everything(visitor)
    page = visitor.page
    page.keyboard.press("Escape")
    server.post("forget", {"image": key})
    for _ in range(number // 6 + 1):  # as many masks under the new key as there were under the old
        visitor.click(0.35, 0.5)
        page.keyboard.press("Escape")
    while page.locator("#result .list li").count() != number:
        page.click("[data-do=undo]")
    visitor.press("[data-get=cutout]", "The server has forgotten these masks")
    visitor.problems.clear()  # the browser reports refused requests
    visitor.finish(server)


def test_a_found_mask_is_not_kept_as_another_one(browser, server):
    visitor = Page(browser, server, "desktop")
    key = choose(visitor)
    find_everything(visitor)
    page = visitor.page
    visitor.press("#result .list li >> nth=1 >> text=Keep", "1 kept")
    held = Held(page, "masks")
    page.click("#result .list li >> nth=0 >> text=Keep")
    held.wait(1)
    server.post("forget", {"image": key})
    page.keyboard.press("p")
    with page.expect_response(lambda r: r.url.endswith("/edit") and r.ok):
        page.mouse.click(*visitor.at(0.1, 0.1))  # painted: number 1 under the new key
    held.release()
    visitor.wait("The server has forgotten these masks")
    assert visitor.kept() == 1
    visitor.problems.clear()
    visitor.finish(server)


def test_a_forgotten_image_is_sent_once(browser, server):
    visitor = Page(browser, server, "desktop")
    key = choose(visitor)
    page = visitor.page
    for place in ((0.35, 0.5), (0.75, 0.4)):
        keep(visitor, *place)
    held = Held(page, "edit")
    page.keyboard.press("p")
    for i, x in enumerate((0.1, 0.9)):
        page.locator("#kept-list small").nth(i).click()
        page.mouse.click(*visitor.at(x, 0.9))
        held.wait(i + 1)
    server.post("forget", {"image": key})
    images = Held(page, "image")
    held.release()
    page.wait_for_timeout(500)
    assert len(images.wait(1)) == 1
    images.release()
    visitor.wait("Painted")
    assert len(json.loads(visitor.download("coco")[1])["annotations"]) == 2
    visitor.problems.clear()
    visitor.finish(server)


def test_a_download_stays_with_its_image(browser, server):
    visitor = Page(browser, server, "desktop")
    key = choose(visitor, "first.jpg")
    page = visitor.page
    dialogs(page, is_accepted=True)
    keep(visitor, 0.35, 0.5)
    server.post("forget", {"image": key})
    held = Held(page, "edit")
    with page.expect_download() as waiting:
        page.click("[data-get=labelme]")
        held.wait(1)
        put(visitor, "second.jpg")
        visitor.wait_for_status("Ready")
        held.release()
    assert waiting.value.suggested_filename == "first.json"
    assert visitor.kept() == 0
    visitor.problems.clear()
    visitor.finish(server)


def test_a_mask_keeps_the_name_that_the_model_gave(browser, server):
    visitor = Page(browser, server, "desktop")
    key = choose(visitor)
    page = visitor.page
    page.fill("#names", "dog, cat")

    def name_it(route):
        answer = route.fetch()
        found = answer.json()
        for mask in found["masks"]:
            mask["object"] = {"name": "dog", "score": 0.9, "is_sure": True}
        route.fulfill(response=answer, json=found)

    page.route("**/api/click", name_it)
    visitor.click(0.35, 0.5)
    server.post("forget", {"image": key})
    (category,) = json.loads(visitor.download("coco")[1])["categories"]
    assert category["name"] == "dog"
    visitor.problems.clear()
    visitor.finish(server)
