"""The page's slider of granularity and its tree, in a real browser (`test_page`)."""

import base64
import json
import re

import pytest

from tests.demo.conftest import encoded, picture
from tests.demo.visitor import IMAGE_HW, NEEDS_BROWSER, Page

pytestmark = NEEDS_BROWSER
JSON = {"content-type": "application/json"}


def test_the_slider_stops_at_levels_and_between_them(browser, server, screenshots):
    visitor = Page(browser, server, "desktop")
    visitor.choose(encoded(picture(*IMAGE_HW)))
    visitor.click(0.35, 0.5)
    page = visitor.page
    assert page.locator("#stops i").count() == 6
    slide = "g => { const s = document.querySelector('#granularity'); s.focus(); s.value = g;"
    slide += " s.dispatchEvent(new Event('input')); s.dispatchEvent(new Event('change')); }"
    page.evaluate(slide, 0.41)  # the stop of level 4 is at 0.4
    assert visitor.level() == 4
    visitor.hush()
    page.evaluate(slide, 0.5)
    visitor.wait("Granularity 0.50")
    page.screenshot(path=screenshots / "desktop_slider.png")
    assert page.locator(".level[aria-pressed=true]").count() == 0
    assert page.inner_text("#what") == "granularity 0.50"
    (annotation,) = json.loads(visitor.download("coco")[1])["annotations"]
    body = {"image": base64.b64encode(encoded(picture(*IMAGE_HW))).decode(), "granularity": 0.5}
    body["points"] = [[0.35 * IMAGE_HW[1], 0.5 * IMAGE_HW[0]]]
    asked = server.send("POST", "/v1/segment", json.dumps(body).encode(), JSON).json["masks"][0]
    assert annotation["area"] == pytest.approx(asked["area"], rel=0.1)  # the pointer is not exact
    visitor.press("[data-do=keep]", "1 kept")
    page.keyboard.press("z")
    assert page.inner_text("#granularity-value") == "0.50"
    page.keyboard.press("2")
    assert visitor.level() == 2
    visitor.finish(server)


def test_the_wheel_walks_in_a_tree(browser, server, screenshots):
    visitor = Page(browser, server, "desktop")
    visitor.choose(encoded(picture(*IMAGE_HW)))
    page = visitor.page
    page.click("summary")
    visitor.slide("#min-score", 0)
    with page.expect_response("**/api/everything") as waiting:
        page.click("#tree")
    masks = waiting.value.json()["masks"]
    visitor.wait(f"{len(masks)} masks in a tree")
    depths = [mask["depth"] for mask in masks]
    rows = page.locator("#result .list li")
    style = "rows => rows.map((e) => Number(getComputedStyle(e).getPropertyValue('--depth')))"
    assert rows.evaluate_all(style) == depths
    deepest = max(depths)
    assert deepest > 0
    place = masks[depths.index(deepest)]["place"]  # nothing lies on top of it there
    page.mouse.move(*visitor.at(*place))
    page.screenshot(path=screenshots / "desktop_tree.png")
    seen = []
    for turn in [-100] * (deepest + 1) + [100] * deepest:
        visitor.hush()
        page.mouse.wheel(0, turn)
        page.wait_for_function("() => document.querySelector('#status').textContent")
        seen.append(int(re.search(rf"step (\d+) of {deepest + 1}\.$", visitor.status)[1]))
    assert seen == [*range(deepest, 0, -1), 1, *range(2, deepest + 2)]
    assert page.inner_text("#zoom") == "100 %"
    page.mouse.click(*visitor.at(*place))
    visitor.wait("1 kept")
    assert len(json.loads(visitor.download("coco")[1])["annotations"]) == 1
    visitor.finish(server)
