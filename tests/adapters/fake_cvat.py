"""As much of a CVAT server as `cvat-cli` asks for: one task with one image, one function."""

import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from cvat_sdk.version import VERSION

TASK, FUNCTION = 7, 3
DATE = "2026-01-01T00:00:00Z"


class FakeCvat:
    """A server on a free port; a context manager.

    Args:
        image: bytes of a PNG file.
        image_hw: its size.
        labels: of the task, as name and type.

    Attributes:
        url: where it is.
        waiting: annotation requests that agents have not fetched yet.
        received: what clients sent, by the path of the request.
    """

    def __init__(self, image: bytes, image_hw: tuple[int, int], labels: list[tuple[str, str]]):
        self.image, self.image_hw, self.labels = image, image_hw, labels
        self.waiting: list[dict] = []
        self.received: dict[str, dict] = {}
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(fake.get(*self.address()))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)))
                self.answer(fake.post(self.address()[0], body))

            do_PATCH = do_PUT = do_POST

            def address(self):
                parts = urlsplit(self.path)
                query = {key: found[0] for key, found in parse_qs(parts.query).items()}
                return unquote(parts.path).rstrip("/"), query

            def answer(self, body):
                is_file = isinstance(body, bytes)
                content = body if is_file else json.dumps(body).encode()
                self.send_response(404 if body is None else 200)
                kind = "application/octet-stream" if is_file else "application/vnd.cvat+json"
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeCvat":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *about: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def get(self, path: str, query: dict[str, str]) -> dict | bytes | None:
        """What a GET is answered with; None for a path that is not here."""
        height, width = self.image_hw
        frame = {"name": "a.png", "width": width, "height": height, "related_files": 0}
        answers = {
            "/api/server/about": {
                "name": "CVAT", "description": "", "version": VERSION, "logo_url": "",
                "subtitle": "",
            },
            "/api/users/self": {"id": 1, "username": "a"},
            f"/api/tasks/{TASK}": self._task(),
            "/api/labels": {
                "count": len(self.labels), "next": None, "previous": None,
                "results": [
                    {"id": 100 + i, "name": name, "type": kind, "attributes": [], "sublabels": []}
                    for i, (name, kind) in enumerate(self.labels)
                ],
            },
            f"/api/tasks/{TASK}/data/meta": {
                "chunks_updated_date": DATE, "frames": [frame], "deleted_frames": [],
                "chunk_size": 1, "size": 1, "image_quality": 70, "start_frame": 0, "stop_frame": 0,
            },
            f"/api/functions/{FUNCTION}": self.received.get("/api/functions", {})
            | {"id": FUNCTION},
        }  # fmt: skip
        if path == f"/api/tasks/{TASK}/data":
            return self.image if query["type"] == "frame" else self._chunk()
        return answers.get(path)

    def post(self, path: str, body: dict) -> dict | None:
        """What a POST, PUT or PATCH is answered with."""
        self.received[path] = body
        if path == "/api/functions":
            # The server gives what a client leaves out.
            body |= {"min_neg_points": body.get("min_neg_points", -1), "startswith_box": False}
            return body | {"id": FUNCTION}
        if path.endswith("/acquire"):
            is_click = body["request_category"] == "interactive"
            return {"ar_assignment": self.waiting.pop() if is_click and self.waiting else None}
        return {"version": 0, "tags": [], "shapes": [], "tracks": []}

    def _task(self) -> dict:
        return {
            "id": TASK, "name": "one image", "organization": None, "size": 1,
            "data_chunk_size": 1, "data": 1,
            "data_original_chunk_type": "imageset", "data_compressed_chunk_type": "imageset",
            "mode": "annotation", "dimension": "2d", "created_date": DATE, "updated_date": DATE,
            "jobs": {"count": 1, "completed": 0, "validation": 0, "url": f"{self.url}/api/jobs"},
            "labels": {"url": f"{self.url}/api/labels?task_id={TASK}"},
        }  # fmt: skip

    def _chunk(self) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("000000.png", self.image)
        return buffer.getvalue()
