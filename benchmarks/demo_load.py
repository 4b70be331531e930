"""A crowd, damaged files and a flood against the web demo: requests, failures, peak memory.

    python -m benchmarks.demo_load                      # the weights of the package
    python -m benchmarks.demo_load --checkpoint DIR --images 200 --visitors 8 --flood-sec 20

Starts `python -m semsam_jax demo` in a process of its own on a free port. Every visitor has an
address of its own (127.0.0.2 and so on: Linux). Memory is the resident memory of the server:
the level after a first round of 24 images that are forgotten again, the peak, and what remains
when the images of all rounds are forgotten. A rejection with a message (4xx, 503) counts as an
answer; a failure is any other status, a rejection without a message, or a connection that breaks.
"""

import argparse
import contextlib
import dataclasses
import http.client
import io
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

import data_pipelines.sample

WARM_IMAGES = 24
SIDES = (320, 640, 1280, 2400)
SETTLE_SEC = 35.0  # the server gives memory back every 30 seconds
NAMES = "dog, cat, person; head, leg"


@dataclasses.dataclass
class LoadTally:
    """What a phase has sent and got; used by several threads."""

    requests: int = 0
    statuses: Counter = dataclasses.field(default_factory=Counter)
    failures: list[str] = dataclasses.field(default_factory=list)
    click_sec: list[float] = dataclasses.field(default_factory=list)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def row(self, name: str, server: "DemoServer") -> str:
        """Line of the table.

        Args:
            name: of the phase.
            server: whose memory stands in the last column.
        """
        answered = sum(n for status, n in self.statuses.items() if status == 200)
        refused = sum(n for status, n in self.statuses.items() if status != 200)
        clicks = "–"
        if self.click_sec:
            tail = sorted(self.click_sec)[int(0.95 * len(self.click_sec))]
            clicks = f"{1e3 * statistics.median(self.click_sec):.0f} / {1e3 * tail:.0f} ms"
        return (
            f"| {name} | {self.requests} | {answered} | {refused} | {len(self.failures)} "
            f"| {clicks} | {server.memory_mb():.0f} MB |"
        )


@dataclasses.dataclass
class DemoServer:
    """The running demo."""

    process: subprocess.Popen
    port: int

    def memory_mb(self, field: str = "VmRSS") -> float:
        """Memory of the server in MiB.

        Args:
            field: of `/proc/PID/status`: `VmRSS` is what is resident now, `VmHWM` its peak.
        """
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+)", text).group(1)) / 1024


class Visitor:
    """Sends requests from one address and counts the answers."""

    def __init__(self, server: DemoServer, tally: LoadTally, address: str):
        self._server, self._tally, self._address = server, tally, address

    def post(self, path: str, body: bytes | dict) -> dict | None:
        """Content of the answer; None if it was refused, or failed.

        Args:
            path: below `/api/`.
            body: a file, or what becomes JSON.
        """
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._server.port, timeout=300, source_address=(self._address, 0)
        )
        start = time.perf_counter()
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # A refusal may come before the file is sent; its answer can still be read.
                connection.request("POST", f"/api/{path}", content)
            response = connection.getresponse()
            status, answer = response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            with self._tally.lock:
                self._tally.requests += 1
                self._tally.failures.append(f"{path}: {error!r}")
            return None
        finally:
            connection.close()
        with self._tally.lock:
            self._tally.requests += 1
            is_refusal = (400 <= status < 500 or status == 503) and answer.get("error")
            if status == 200 or is_refusal:
                self._tally.statuses[status] += 1
            else:
                self._tally.failures.append(f"{path}: {status} {answer}")
            if status == 200 and path == "click":
                self._tally.click_sec.append(time.perf_counter() - start)
        return answer if status == 200 else None

    def visit(self, content: bytes, number: int) -> str | None:
        """Drops an image and works on it.

        Args:
            content: an image file.
            number: of the visit; every tenth also segments everything.

        Returns:
            The secret of the image; None if it was refused.
        """
        image = self.post("image", content)
        if image is None:
            return None
        key, width, height = image["image"], image["width"], image["height"]
        self.post("encode", {"image": key})
        answer = None
        for click in range(4):
            point = [width * (0.2 + 0.2 * click), height * 0.5, 1]
            names = NAMES if click == 3 else ""
            answer = self.post("click", {"image": key, "points": [point], "names": names})
        if answer:
            masks = [mask["number"] for mask in answer["masks"]]
            request = {"image": key, "kind": "coco", "file_name": "image.jpg", "masks": masks}
            self.post("download", request)
        if number % 10 == 0:
            self.post("everything", everything(key))
        return key


def main() -> None:
    """Prints a table; exits with 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", help="default: the weights of the package")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--visitors", type=int, default=8)
    parser.add_argument("--flood-threads", type=int, default=32)
    parser.add_argument("--flood-sec", type=float, default=20.0)
    args = parser.parse_args()
    images = list(make_images())
    with start(args.checkpoint) as server:
        print("| phase | requests | answered | refused | failures | click (95 %) | memory |")
        print("|---|---|---|---|---|---|---|")
        print(f"| started | – | – | – | – | – | {server.memory_mb():.0f} MB |", flush=True)
        failures = []
        for name, work in (
            ("warm", lambda t: crowd(server, t, images, WARM_IMAGES, args.visitors)),
            ("one visitor", lambda t: crowd(server, t, images, len(images), 1)),
            ("crowd", lambda t: crowd(server, t, images, args.images, args.visitors)),
            ("damaged files", lambda t: damaged(server, t, images)),
            ("flood", lambda t: flood(server, t, images, args.flood_threads, args.flood_sec)),
        ):
            tally = LoadTally()
            keys = work(tally)
            print(tally.row(name, server), flush=True)
            forget(server, keys)
            print(f"| … images forgotten | – | – | – | – | – | {server.memory_mb():.0f} MB |")
            failures += tally.failures
        print(f"peak {server.memory_mb('VmHWM'):.0f} MB, load average {os.getloadavg()[0]:.1f}")
    for failure in failures[:20]:
        print("failure:", failure, file=sys.stderr)
    sys.exit(bool(failures))


@contextlib.contextmanager
def start(checkpoint: str | None) -> Iterator[DemoServer]:
    """Runs the demo while the block lasts.

    Args:
        checkpoint: folder of a model, or None for the weights of the package.
    """
    command = [sys.executable, "-m", "semsam_jax", "demo", "--port", "0"]
    command += ["--checkpoint", checkpoint] if checkpoint else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    found = None
    try:
        for line in process.stdout:  # the first one says which checkpoint it is
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                break
        if found is None:
            sys.exit("the demo did not start")
        yield DemoServer(process, int(found.group(1)))
    finally:
        process.terminate()
        process.wait(60)


def make_images() -> Iterator[bytes]:
    """Images of the sample in several sizes, as JPEG and PNG."""
    folder = data_pipelines.sample.roots()["coco"] / "val2017"
    for i, path in enumerate(sorted(folder.glob("*.jpg"))[:8]):
        with Image.open(path) as image:
            side = SIDES[i % len(SIDES)]
            scale = side / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            buffer = io.BytesIO()
            image.resize(size).save(buffer, "PNG" if i == 1 else "JPEG")
        yield buffer.getvalue()


def crowd(
    server: DemoServer, tally: LoadTally, images: list[bytes], number: int, visitors: int
) -> list:
    """Many visitors with many images, all tabs left open.

    Args:
        server: the demo.
        tally: counts what is sent and answered.
        images: image files, taken in turn.
        number: images dropped in all.
        visitors: who drop them at the same time, each from an address of its own.

    Returns:
        The secrets of the images.
    """
    keys, turns = [], iter(range(number))

    def visit(address: str) -> None:
        visitor = Visitor(server, tally, address)
        while True:
            with tally.lock:
                turn = next(turns, None)
            if turn is None:
                return
            keys.append(visitor.visit(images[turn % len(images)], turn))

    together([lambda i=i: visit(f"127.0.0.{2 + i}") for i in range(visitors)])
    return keys


def damaged(server: DemoServer, tally: LoadTally, images: list[bytes]) -> list:
    """Files that are no images, from many addresses, while a visitor clicks.

    Returns:
        The secrets of the visitor's images.
    """
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
    strip = io.BytesIO()
    Image.new("L", (20_000, 4)).save(strip, "PNG")
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>'
    files = [bomb.getvalue(), strip.getvalue(), svg, b"", b"%!PS", images[0][:900], b"\xff" * 500]

    def send(address: str) -> None:
        visitor = Visitor(server, tally, address)
        for content in files * 4:
            visitor.post("image", content)

    return visit_during(
        server, tally, images, [lambda i=i: send(f"127.0.0.{60 + i}") for i in range(8)]
    )


def flood(
    server: DemoServer, tally: LoadTally, images: list[bytes], threads: int, seconds: float
) -> list:
    """One address asks for whole images and sends images without a pause; a visitor clicks.

    Args:
        server: the demo.
        tally: counts what is sent and answered.
        images: image files.
        threads: requests at the same time.
        seconds: how long.

    Returns:
        The secrets of all images.
    """
    stop = time.perf_counter() + seconds
    key = Visitor(server, tally, "127.0.0.99").post("image", images[0])["image"]

    def send() -> None:
        visitor, turn = Visitor(server, tally, "127.0.0.99"), 0
        while time.perf_counter() < stop:
            turn += 1
            if turn % 4:
                visitor.post("everything", everything(key))
            else:
                visitor.post("image", images[turn % len(images)])

    return [*visit_during(server, tally, images, [send] * threads), key]


def visit_during(
    server: DemoServer, tally: LoadTally, images: list[bytes], work: list[Callable]
) -> list:
    """Runs `work` in threads and visits with one image after the other until they are done.

    Returns:
        The secrets of the visitor's images.
    """
    threads = [threading.Thread(target=one) for one in work]
    visitor, keys = Visitor(server, tally, "127.0.0.50"), []
    for thread in threads:
        thread.start()
    while not keys or any(thread.is_alive() for thread in threads):
        keys.append(visitor.visit(images[len(keys) % len(images)], 1))
    for thread in threads:
        thread.join()
    return keys


def forget(server: DemoServer, keys: list) -> None:
    """Closes all tabs and waits until the server has given memory back."""
    closer = Visitor(server, LoadTally(), "127.0.0.40")
    for key in filter(None, keys):
        closer.post("forget", {"image": key})
    time.sleep(SETTLE_SEC)


def everything(key: str) -> dict:
    """Request for all masks of an image."""
    return {"image": key, "names": "", "level": 0, "quality": 0.3, "grid": 8}


def together(work: list[Callable]) -> None:
    """Runs all at the same time."""
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
