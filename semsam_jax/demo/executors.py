"""Executors for the model, so that clicks never wait for requests on whole images."""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

from semsam_jax.demo.limits import HTTPError, Limits

T = TypeVar("T")
ExecutorName = Literal["image", "names", "quick", "slow"]


class Executors:
    """Runs work on one thread per executor; rejects it when the queue is full.

    Args:
        limits: queue lengths, of all visitors together and of one.
    """

    def __init__(self, limits: Limits):
        self._top = {
            "image": (limits.quick_waiting, limits.quick_per_client),
            "names": (limits.quick_waiting, limits.quick_per_client),
            "quick": (limits.quick_waiting, limits.quick_per_client),
            "slow": (limits.slow_waiting, limits.slow_per_client),
        }
        self._threads = {
            name: ThreadPoolExecutor(1, thread_name_prefix=f"demo-{name}") for name in self._top
        }
        self._waiting: Counter[ExecutorName] = Counter()
        self._of_client: Counter[tuple[ExecutorName, str]] = Counter()

    async def run(self, name: ExecutorName, client: str, work: Callable[[], T]) -> T:
        """Waits for the result of `work`.

        Raises:
            HTTPError: the queue is full.
        """
        top, top_of_client = self._top[name]
        if self._of_client[name, client] >= top_of_client:
            raise HTTPError(
                429, "Your earlier requests are still running. Wait for them to finish."
            )
        if self._waiting[name] >= top:
            raise HTTPError(503, "The demo is busy. Try again in a moment.")
        self._waiting[name] += 1
        self._of_client[name, client] += 1
        future = self._threads[name].submit(work)
        # Work cannot be stopped: it counts until it is over, even if the visitor has gone away.
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._finish, name, client))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Waits for the running work and drops what is queued."""
        for threads in self._threads.values():
            threads.shutdown(wait=True, cancel_futures=True)

    def _finish(self, name: ExecutorName, client: str) -> None:
        self._waiting[name] -= 1
        self._of_client[name, client] -= 1
        if not self._of_client[name, client]:
            del self._of_client[name, client]
