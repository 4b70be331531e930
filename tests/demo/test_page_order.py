"""What the page shows where answers come late, out of order, or twice (see `test_page`)."""

import json

import pytest

from tests.demo.conftest import encoded, picture
from tests.demo.visitor import IMAGE_HW, NEEDS_BROWSER, Page

pytestmark = NEEDS_BROWSER


@pytest.fixture
def visitor(browser, server):
    visitor = Page(browser, server, "desktop")
    yield visitor
    visitor.finish(server)


def points_of(waiting):
    return waiting.value.post_data_json["points"]


def test_undo_shows_the_mask_of_the_clicks_that_are_left(visitor):
    visitor.choose(encoded(picture(*IMAGE_HW)))
    page = visitor.page
    visitor.click(0.35, 0.5)
    visitor.hush()
    for place in ((0.4, 0.5), (0.45, 0.5)):  # the second comes before the answer to the first
        page.mouse.click(*visitor.at(*place))
    visitor.wait("Answered")
    visitor.hush()
    with page.expect_request("**/api/click") as waiting:
        page.click("[data-do=undo]")
    assert len(points_of(waiting)) == 2
    visitor.wait("Answered")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.click("[data-do=undo]")  # to the first click, whose answer is there
    page.wait_for_timeout(300)
    assert not [url for url in asked if url.endswith("api/click")]
    assert visitor.page.locator(".level").count() == 6


def test_the_image_chosen_last_is_shown(visitor):
    page = visitor.page
    held = []
    page.route("**/api/image", lambda route: route.continue_() if held else held.append(route))
    small = {"name": "slow.jpg", "mimeType": "image/jpeg", "buffer": encoded(picture(60, 80))}
    page.set_input_files("#file", small)
    page.wait_for_timeout(200)
    last = {"name": "last.jpg", "mimeType": "image/jpeg", "buffer": encoded(picture(*IMAGE_HW))}
    page.set_input_files("#file", last)
    page.wait_for_function(
        "() => document.querySelector('#status').textContent.startsWith('Ready')"
    )
    with page.expect_response("**/api/forget") as waiting:
        held[0].continue_()
    assert waiting.value.request.post_data_json["image"]
    visitor.click(0.35, 0.5)
    visitor.press("[data-do=keep]", "")
    content = json.loads(visitor.download("coco")[1])
    assert content["images"][0]["file_name"] == "last.jpg"
    assert (content["images"][0]["height"], content["images"][0]["width"]) == IMAGE_HW


def test_masks_that_are_kept_while_an_image_is_sent_are_not_lost(visitor):
    visitor.choose(encoded(picture(*IMAGE_HW)), "first.jpg")
    page = visitor.page
    visitor.click(0.35, 0.5)
    held, said = [], []
    page.route("**/api/image", lambda route: held.append(route))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    other = {"name": "other.jpg", "mimeType": "image/jpeg", "buffer": encoded(picture(60, 80))}
    page.set_input_files("#file", other)
    page.wait_for_timeout(200)
    page.click("[data-do=keep]")
    with page.expect_response("**/api/forget"):
        held[0].continue_()
    page.unroute("**/api/image")
    assert len(said) == 1
    assert visitor.kept() == 1
    content = json.loads(visitor.download("coco")[1])
    assert content["images"][0]["file_name"] == "first.jpg"


def test_the_thresholds_of_the_model_count_until_the_slider_is_moved(visitor):
    visitor.choose(encoded(picture(*IMAGE_HW)))
    page = visitor.page
    page.click("summary")
    page.select_option("#grid", "8")
    for expected in (None, 0):
        if expected is not None:
            visitor.set_score(expected)
        visitor.hush()
        with page.expect_request("**/api/everything") as waiting:
            page.click("#everything")
        assert waiting.value.post_data_json["quality"] == expected
        page.wait_for_function(
            "() => / in |Nothing/.test(document.querySelector('#status').textContent)"
        )
    row = page.locator("#result .list li >> nth=0 >> text=Keep")
    for answer in ("1 kept", "Kept already"):
        visitor.hush()
        row.click()
        visitor.wait(answer)
    assert visitor.kept() == 1
