"""What all interfaces of the server share: images, the model, and its queues."""

import base64
import binascii
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from semsam_jax.demo.engine import Engine
from semsam_jax.demo.executors import Executors
from semsam_jax.demo.limits import HTTPError, Limits
from semsam_jax.demo.sessions import ImageSession, SessionStore
from semsam_jax.demo.uploads import read_upload

T = TypeVar("T")
_MAX_KNOWN = 512


class Service:
    """Runs the requests of all interfaces.

    Args:
        engine: the model.
        sessions: images.
        executors: where the work is done.
        limits: see `Limits`.
    """

    def __init__(
        self, engine: Engine, sessions: SessionStore, executors: Executors, limits: Limits
    ):
        self.engine, self.sessions = engine, sessions
        self.executors, self.limits = executors, limits
        self._known: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._lock = threading.Lock()

    async def quick(self, client: str, work: Callable[[], T]) -> T:
        """Runs a click."""
        return await self.executors.run("quick", client, work)

    async def slow(self, client: str, work: Callable[[], T]) -> T:
        """Runs work on a whole image, or a download."""
        return await self.executors.run("slow", client, work)

    async def learn(self, names: str, client: str) -> str:
        """Embeds names that are new; returns all without spaces around.

        Names that were embedded before wait for nothing, new ones for no whole image.

        Raises:
            HTTPError: the names are invalid, or the queue is full.
        """
        names = names.strip()
        if names and not self.engine.has_embedded(names):
            await self.executors.run("names", client, lambda: self.engine.embed_labels(names))
        return names

    async def open(self, content: bytes, client: str) -> tuple[str, ImageSession]:
        """Key and session of an image file; the same file of the same visitor is opened once."""
        about = (client, hashlib.sha256(content).hexdigest())
        with self._lock:
            key = self._known.get(about, "")
        try:
            return key, self.sessions.get(key)
        except HTTPError:  # not seen yet, or forgotten
            pass

        def read() -> str:
            return self.sessions.add(read_upload(content, self.limits), client)

        key = await self.executors.run("image", client, read)
        with self._lock:
            self._known[about] = key
            while len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        return key, self.sessions.get(key)


def decode_image(text: str) -> bytes:
    """Bytes of an image file in base64, with or without `data:image/...;base64,` in front."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise HTTPError(400, "image: this data URL is not base64.")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HTTPError(400, "image: not base64; expected the bytes of an image file.") from error
