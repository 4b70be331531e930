"""Downloads over HTTP: resumed, verified, atomic and cached."""

import contextlib
import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from semsam_jax.core.console import hides_progress
from semsam_jax.core.errors import CheckpointError
from semsam_jax.core.model_files import is_web_page

_CHUNK = 1 << 20
_TRIES = 6
_TIMEOUT_SEC = 30.0
_WAIT_SEC = 1.0


def download(url: str, target: Path, *, sha256: str | None = None, size: int | None = None) -> str:
    """Downloads a file unless it is there.

    An interrupted download is resumed, also by a later call. Concurrent processes wait for each
    other.

    Args:
        url: http or https; redirects are followed.
        target: the file; its folder is made.
        sha256: the expected hash; None if unknown.
        size: the expected number of bytes; None if unknown.

    Returns:
        The SHA-256 of the file.

    Raises:
        CheckpointError: not reachable, not the expected file (a web page, another hash or size), or
            the folder cannot be written. Nothing new is left at `target`.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            if not target.exists():
                partial = target.with_name(f"{target.name}.part")
                _fetch(url, partial, target, size)
                found = _check(url, partial, target, sha256)
                partial.replace(target)
                _about(partial).unlink(missing_ok=True)
                return found
            found = _hash(target)
    except urllib.error.URLError as error:  # a subclass of OSError
        raise _unreachable(url, target, error) from error
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or target}: cannot be written ({error.strerror or error}); free some "
            f"space, or set SEMSAM_JAX_CACHE to a folder that can be written."
        ) from error
    if sha256 is not None and found != sha256:
        raise CheckpointError(
            f"{target}: SHA-256 {found}, expected {sha256}; it is not the file of {url}: delete it."
        )
    return found


def _fetch(url: str, partial: Path, target: Path, size: int | None) -> None:
    reason: Exception | None = None
    for number in range(_TRIES):
        before = partial.stat().st_size if partial.exists() else 0
        try:
            if _fetch_once(url, partial, size):
                return
            reason = None
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise
            reason = error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
            reason = error
        except ConnectionError as error:
            reason = error
        grown = partial.exists() and partial.stat().st_size > before
        if not grown and number + 1 < _TRIES:
            time.sleep(_WAIT_SEC * 2**number)
    if isinstance(reason, Exception):
        raise _unreachable(url, target, reason) from reason
    raise CheckpointError(
        f"{url}: the server ends the file too early, {_TRIES} times; the same command resumes "
        f"where it stopped."
    )


def _fetch_once(url: str, partial: Path, size: int | None) -> bool:
    """Appends what is missing; returns whether the file is complete."""
    start = partial.stat().st_size if partial.exists() else 0
    known = _read_about(partial)
    headers = {"User-Agent": "semsam_jax"}
    if start and known.get("tag") and known.get("url") == url:
        headers |= {"Range": f"bytes={start}-", "If-Range": known["tag"]}
    else:
        start = 0
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SEC)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to fetch, or the file has changed: start over
            partial.unlink(missing_ok=True)
            return False
        raise
    with response:
        if response.status != 206:
            start = 0
        _refuse_page(url, response.headers.get_content_type())
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        if size is not None and total is not None and total != size:
            raise CheckpointError(
                f"{url}: has {total} bytes, expected {size}; this is another file."
            )
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        is_weak = tag.startswith("W/")
        _about(partial).write_text(json.dumps({"url": url, "tag": "" if is_weak else tag}))
        with (
            partial.open("ab" if start else "wb") as file,
            tqdm(
                desc=partial.name.removesuffix(".part"),
                total=total,
                initial=start,
                unit="B",
                unit_scale=True,
                disable=hides_progress(),
            ) as bar,
        ):
            while chunk := response.read(_CHUNK):
                if not file.tell():
                    _refuse_start(url, chunk)
                file.write(chunk)
                bar.update(len(chunk))
            done = file.tell()
    return done > 0 if total is None else done == total


def _check(url: str, partial: Path, target: Path, sha256: str | None) -> str:
    found = _hash(partial)
    if sha256 is not None and found != sha256:
        kept = target.with_name(f"{target.name}.unverified")
        partial.replace(kept)
        _about(partial).unlink(missing_ok=True)
        raise CheckpointError(
            f"{url}: SHA-256 {found}, expected {sha256}; the file is damaged or another one. It "
            f"lies at {kept} and is not used."
        )
    if sha256 is None:
        print(f"{target.name}: SHA-256 {found} (no value is known to compare it with)", flush=True)
    return found


def _refuse_page(url: str, content_type: str) -> None:
    if content_type in ("text/html", "application/xhtml+xml"):
        raise CheckpointError(
            f"{url}: got a web page instead of the file (a login page or a captive portal?); "
            f"download it in a browser and give the file."
        )


def _refuse_start(url: str, chunk: bytes) -> None:
    if is_web_page(chunk):
        _refuse_page(url, "text/html")


def _unreachable(url: str, target: Path, error: Exception) -> CheckpointError:
    is_answer = isinstance(error, urllib.error.HTTPError)
    reason = error if is_answer else getattr(error, "reason", None) or error
    return CheckpointError(
        f"{url}: cannot be downloaded ({str(reason)[:200] or type(reason).__name__}); without a "
        f"connection, get the file by other means and put it at {target}."
    )


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _about(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _read_about(partial: Path) -> dict:
    try:
        found = json.loads(_about(partial).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Holds an exclusive lock among the processes of this machine."""
    try:
        import fcntl
    except ImportError:  # Windows: no locking between processes
        yield
        return
    path = target.with_name(f".{target.name}.lock")
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
