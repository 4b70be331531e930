"""A visitor of the page in a real browser: Debian's Chromium without a window."""

import base64
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = "/usr/bin/chromium"
IS_REQUIRED = bool(os.environ.get("SEMSAM_JAX_REQUIRE_BROWSER"))
NEEDS_BROWSER = pytest.mark.skipif(
    not (Path(CHROMIUM).exists() or IS_REQUIRED),
    reason=f"no {CHROMIUM}: `apt-get install chromium` to test the page",
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"desktop": {"width": 1360, "height": 900}, "phone": {"width": 390, "height": 844}}
IMAGE_HW = (300, 400)


class Page:
    """A visitor: opens the page and does what a hand would do."""

    def __init__(self, browser, server, size, scheme="light"):
        self.requests, self.problems = [], []
        context = browser.new_context(
            viewport=SIZES[size],
            has_touch=size == "phone",
            accept_downloads=True,
            color_scheme=scheme,
        )
        self.page = context.new_page()
        self.page.set_default_timeout(120_000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._listen)
        self.page.goto(server.url)
        self.page.wait_for_selector("#app[data-ready=yes]")
        self.page.evaluate("document.querySelector('#preview').checked = false")

    def _listen(self, message):
        if message.type == "error":
            self.problems.append(message.text)

    def choose(self, content, name="image.jpg"):
        file = {"name": name, "mimeType": "image/jpeg", "buffer": content}
        self.page.set_input_files("#file", file)
        self.wait("Ready")

    def wait(self, start):
        self.page.wait_for_function(
            "start => document.querySelector('#status').textContent.startsWith(start)"
            " && !document.querySelector('#app').hasAttribute('data-busy')",
            arg=start,
        )

    def wait_for_status(self, start):
        """Unlike `wait`, also while the page is busy."""
        self.page.wait_for_function(
            "start => document.querySelector('#status').textContent.startsWith(start)", arg=start
        )

    @property
    def status(self):
        return self.page.inner_text("#status")

    def at(self, fx, fy):
        box = self.page.locator("#view").bounding_box()
        return box["x"] + fx * box["width"], box["y"] + fy * box["height"]

    def pinch(self, first, second, *ends, steps=8):
        """Two fingers move from two places to two others."""
        fingers = self.page.context.new_cdp_session(self.page)
        starts = np.array([self.at(*first), self.at(*second)])
        ends = np.array([self.at(*end) for end in ends])

        def touch(kind, places):
            points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places.tolist())]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", starts)
        for share in np.linspace(0, 1, steps + 1)[1:]:
            touch("touchMove", starts + share * (ends - starts))
        touch("touchEnd", np.zeros((0, 2)))
        fingers.detach()

    def hush(self):
        self.page.evaluate("document.querySelector('#status').textContent = ''")

    def click(self, fx, fy, **options):
        self.hush()
        self.page.mouse.click(*self.at(fx, fy), **options)
        self.wait("Answered")

    def drag(self, start, stop, status):
        self.hush()
        self.page.mouse.move(*self.at(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(*stop), steps=4)
        self.page.mouse.up()
        self.wait(status)

    def slide(self, selector, value):
        moved = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }"
        self.page.locator(selector).evaluate(moved, value)

    def press(self, selector, status):
        self.hush()
        self.page.click(selector)
        self.wait(status)

    def canvas(self):
        url = self.page.evaluate("document.querySelector('#view').toDataURL()")
        content = base64.b64decode(url.split(",")[1])
        # The canvas follows the page's width, which may settle late: compare at one size.
        image = Image.open(io.BytesIO(content)).convert("RGB").resize((400, 300))
        return np.asarray(image).astype(int)

    def download(self, kind):
        with self.page.expect_download() as waiting:
            self.page.click(f"[data-get={kind}]")
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()

    def captions(self):
        return self.page.locator(".level span").all_inner_texts()

    def level(self):
        pressed = self.page.locator(".level[aria-pressed=true]").get_attribute("data-level")
        stop = self.page.evaluate("fetch('api/info').then((r) => r.json())")["stops"]
        slider = float(self.page.input_value("#granularity"))
        assert slider == pytest.approx(stop[int(pressed) - 1], abs=0.006)
        return int(pressed)

    def kept(self):
        return self.page.locator("#kept-list li").count()

    def finish(self, server):
        assert self.problems == []
        outside = [u for u in self.requests if not u.startswith((server.url, "data:", "blob:"))]
        assert outside == []
        self.page.context.close()
