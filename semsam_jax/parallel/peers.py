"""Notices within seconds that another process of the run is gone, and stops this one.

A process that waits for a dead one in a collective waits for ever, or fails with a message
about sockets. So every process keeps a connection to process 0: a closed connection, or one
that has been silent for too long, is a dead process. All others then say which one it was and
end with the code on which launchers start the run again.
"""

import json
import os
import secrets
import socket
import sys
import threading
import time
from types import TracebackType

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

_PING_SEC = 5.0
_SILENCE_SEC = 30.0
_CONNECT_SEC = 20.0
_GRACE_SEC = 5.0
_FAILED_CODE = 2


class PeerWatch:
    """Watches the other processes while the `with` block runs; does nothing in a single one.

    Args:
        lost_code: exit code of this process when another one is gone.
    """

    def __init__(self, lost_code: int):
        self._code = lost_code
        self._is_over = threading.Event()
        self._peers: dict[str, socket.socket] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "PeerWatch":
        if jax.process_count() > 1:
            if jax.process_index() == 0:
                self._listen()
            else:
                self._connect(_exchange({}))
            threading.Thread(target=self._ping, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if jax.process_count() > 1 and error is not None and _is_about_a_connection(error):
            time.sleep(_GRACE_SEC)  # The watching thread knows better what happened.
        self._is_over.set()
        has_failed = kind is not None and not issubclass(kind, SystemExit)
        self._say(f"failed {_me()}: {error}" if has_failed else "bye")
        with self._lock:
            for peer in self._peers.values():
                peer.close()

    def _listen(self) -> None:
        server = socket.create_server(("", 0), backlog=jax.process_count())
        server.settimeout(_CONNECT_SEC)
        token = secrets.token_hex(8)
        _exchange({"hosts": _own_addresses(), "port": server.getsockname()[1], "token": token})
        while len(self._peers) < jax.process_count() - 1:
            try:
                peer, _ = server.accept()
                peer.settimeout(_SILENCE_SEC)
                lines = peer.makefile("r", encoding="utf-8", newline="\n")
                greeting, _, name = lines.readline().rstrip("\n").partition(" ")
            except OSError:
                logging.warning("peer watch: not all processes connected; jax's own is slower")
                return
            if greeting == token:
                self._watch(name, peer, lines)

    def _connect(self, where: dict) -> None:
        for host in where["hosts"]:
            try:
                peer = socket.create_connection((host, where["port"]), timeout=_PING_SEC)
            except OSError:
                continue
            peer.settimeout(_SILENCE_SEC)
            peer.sendall(f"{where['token']} {_me()}\n".encode())
            self._watch("process 0", peer, peer.makefile("r", encoding="utf-8", newline="\n"))
            return
        logging.warning("peer watch: process 0 cannot be reached; jax's own is slower")

    def _watch(self, name: str, peer: socket.socket, lines) -> None:
        with self._lock:
            self._peers[name] = peer
        threading.Thread(target=self._read, args=(name, lines), daemon=True).start()

    def _read(self, name: str, lines) -> None:
        """Follows what one peer says until it says good-bye or nothing more."""
        line = ""
        try:
            for line in lines:
                word, _, rest = line.strip().partition(" ")
                if word == "bye" or self._is_over.is_set():
                    return
                if word == "lost":
                    self._stop(f"{rest} is gone", self._code)
                if word == "failed":
                    if jax.process_index() == 0:
                        self._say(line.strip())  # The others only hear this process.
                    time.sleep(_GRACE_SEC)  # The same error may be about to stop us by itself.
                    self._stop(f"{rest}", _FAILED_CODE)
        except OSError:
            pass  # Silence for too long, or a reset connection: gone, like an end of file.
        if not self._is_over.is_set():
            self._say(f"lost {name}")
            self._stop(f"{name} is gone", self._code)

    def _ping(self) -> None:
        while not self._is_over.wait(_PING_SEC):
            self._say("ping")

    def _say(self, line: str) -> None:
        data = (line.replace("\n", " ")[:2000] + "\n").encode()
        with self._lock:
            peers = list(self._peers.values())
        for peer in peers:
            try:
                peer.sendall(data)
            except OSError:
                continue  # Its reader notices.

    def _stop(self, what: str, code: int) -> None:
        if self._is_over.is_set():
            return
        advice = (
            "the same command resumes from the newest checkpoint"
            if code == self._code
            else "repair what it says, then start all processes again"
        )
        print(f"error: {what}; {_me()} stops with code {code}; {advice}.", file=sys.stderr)
        sys.stderr.flush()
        sys.stdout.flush()
        # The main thread may hang in a collective and would not see an exception.
        os._exit(code)


def _me() -> str:
    return f"process {jax.process_index()} of this run (on {socket.gethostname()})"


def _is_about_a_connection(error: BaseException) -> bool:
    return isinstance(error, jax.errors.JaxRuntimeError)


def _own_addresses() -> list[str]:
    """Addresses under which other hosts may reach this one, and loopback for the same host."""
    found = []
    try:
        found += [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # Sends nothing; asks which interface leads out.
            found.append(probe.getsockname()[0])
    except OSError:
        logging.warning("peer watch: the addresses of this host are not all known")
    outside = [address for address in dict.fromkeys(found) if not address.startswith("127.")]
    return [*outside, "127.0.0.1"]


def _exchange(own: dict) -> dict:
    """Sends what process 0 knows to all processes."""
    box = np.zeros(4096, np.uint8)
    text = json.dumps(own).encode()
    box[: len(text)] = np.frombuffer(text, np.uint8)
    got = np.asarray(multihost_utils.broadcast_one_to_all(box)).astype(np.uint8)
    return json.loads(got.tobytes().rstrip(b"\0"))
