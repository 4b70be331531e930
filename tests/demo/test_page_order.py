"""The page when answers are slow or the server has forgotten, in a real browser (`test_page`)."""

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
