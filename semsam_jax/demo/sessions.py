"""Uploaded images of all visitors, each under its own secret key, limited in number and age."""

import dataclasses
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from semsam_jax.demo.limits import HTTPError, Limits
from semsam_jax.demo.uploads import Upload
from semsam_jax.inference.predictor import Predictor

GONE = "This image is no longer in memory. Upload it again."


@dataclasses.dataclass(eq=False)
class ImageSession:
    """One image of one visitor and what was found in it.

    Attributes:
        upload: the image.
        client: address of the visitor.
        predictor: holds the encoded image; None until it is encoded, and after its features were
            evicted.
        encode_sec: seconds that the last encoding took.
        records: masks that were returned, by number, oldest first.
        used_at: monotonic seconds of the last request.
    """

    upload: Upload
    client: str
    predictor: Predictor | None = None
    encode_sec: float = 0.0
    records: OrderedDict[int, dict] = dataclasses.field(default_factory=OrderedDict)
    used_at: float = 0.0
    _bytes: int = 0
    _next: int = 1
    # threading.Lock is a function before Python 3.13, so no type.
    _lock: AbstractContextManager = dataclasses.field(default_factory=threading.Lock)

    def remember(self, records: Sequence[dict], top_bytes: int) -> list[int]:
        """Keeps masks for downloads, drops the oldest; returns their numbers."""
        with self._lock:
            numbers = []
            for record in records:
                self.records[self._next] = record
                self._bytes += _size(record)
                numbers.append(self._next)
                self._next += 1
            while self._bytes > top_bytes and len(self.records) > len(numbers):
                self._bytes -= _size(self.records.popitem(last=False)[1])
            return numbers

    def recall(self, numbers: Sequence[int]) -> list[dict]:
        """Returns stored masks; HTTPError if one of them is gone."""
        with self._lock:
            if not all(number in self.records for number in numbers):
                raise HTTPError(410, "Some of these masks are no longer in memory. Click again.")
            return [self.records[number] for number in numbers]


class SessionStore:
    """Finds a session by its secret key; forgets idle ones.

    Args:
        limits: how many, and for how long.
        clock: monotonic seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self._limits = limits
        self._clock = clock
        self._sessions: OrderedDict[str, ImageSession] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of images."""
        return len(self._sessions)

    def add(self, upload: Upload, client: str) -> str:
        """Stores an image and returns its secret key."""
        with self._lock:
            self._forget_idle()
            own = [key for key, session in self._sessions.items() if session.client == client]
            for key in own[: max(0, len(own) - self._limits.images_per_client + 1)]:
                del self._sessions[key]
            while len(self._sessions) >= self._limits.images:
                self._sessions.popitem(last=False)
            key = secrets.token_urlsafe(24)
            self._sessions[key] = ImageSession(upload, client, used_at=self._clock())
            return key

    def get(self, key: str) -> ImageSession:
        """Returns a session; HTTPError if the image is gone or never existed."""
        with self._lock:
            self._forget_idle()
            session = self._sessions.get(key)
            if session is None:
                raise HTTPError(410, GONE, is_gone=True)
            session.used_at = self._clock()
            self._sessions.move_to_end(key)
            return session

    def remove(self, key: str) -> None:
        """Forgets an image."""
        with self._lock:
            self._sessions.pop(key, None)

    def forget_idle(self) -> None:
        """Forgets images without recent requests."""
        with self._lock:
            self._forget_idle()

    def put_features_away(self, feature_bytes: int) -> None:
        """Drops encodings, least recently used first, beyond the limit in bytes.

        Args:
            feature_bytes: size of one encoding.
        """
        with self._lock:
            encoded = [v for v in self._sessions.values() if v.predictor is not None]
            keep = max(1, self._limits.feature_bytes // max(1, feature_bytes))
            for session in encoded[: max(0, len(encoded) - keep)]:
                session.predictor = None

    def _forget_idle(self) -> None:
        oldest = self._clock() - self._limits.image_idle_sec
        for key in [key for key, session in self._sessions.items() if session.used_at < oldest]:
            del self._sessions[key]


def _size(record: dict) -> int:
    return len(record["segmentation"]["counts"]) + 512
