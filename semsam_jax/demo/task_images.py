"""Fetches the images of Label Studio's tasks, from the configured host only."""

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import quote, urljoin, urlsplit

from semsam_jax.demo.limits import HTTPError, Limits, too_many_bytes
from semsam_jax.demo.service import decode_image

_TIMEOUT_SEC = 20.0
_CHUNK = 1 << 16
_TOKEN_SEC = 200.0  # Label Studio's access tokens live five minutes
_STORAGES = ("s3://", "gs://", "azure-blob://")
_MAX_ADDRESS = 4096
_SAFE = "%/:?&=#+,;@~!$'()*[]"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within one host; None for any, which only a storage needs."""

    def __init__(self, within: str | None):
        self._within = within

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """The request to follow, or an error."""
        if self._within is not None and not newurl.startswith(self._within):
            raise urllib.error.HTTPError(newurl, 403, "redirected elsewhere", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class TaskImages:
    """Images of tasks.

    Args:
        limits: see `Limits`.
        url: address of Label Studio, such as http://localhost:8080; None reads only images inside
            the request (`data:` URLs).
        token: of a Label Studio user; a personal access token or a legacy one.
    """

    def __init__(self, limits: Limits, url: str | None = None, token: str | None = None):
        self._limits = limits
        self._url = url.rstrip("/") + "/" if url else None
        self._token = token
        self._access: tuple[str, float] | None = None
        self._lock = threading.Lock()

    def fetch(self, address: object, task_id: object = None) -> bytes:
        """Bytes of an image file.

        Args:
            address: from the task: a path or URL of Label Studio, a `data:` URL, or a location in
                a storage that Label Studio knows (`s3://` and others).
            task_id: of the task, for storages.

        Raises:
            HTTPError: another host, no host is configured, or the image cannot be fetched.
        """
        if not isinstance(address, str) or not address or len(address) > self._top(address):
            raise HTTPError(400, "The task holds no address of an image.")
        if address.startswith("data:"):
            return decode_image(address)
        if self._url is None:
            raise HTTPError(
                400,
                "The image cannot be fetched: start the server with --label-studio-url and the "
                "token of a user in LABEL_STUDIO_API_KEY.",
            )
        if address.startswith(_STORAGES) and isinstance(task_id, int):
            coded = quote(base64.b64encode(address.encode()).decode())
            address = f"tasks/{task_id}/resolve/?fileuri={coded}"
        target = urljoin(self._url, address.lstrip("/") if "://" not in address else address)
        if not target.startswith(self._url):
            host = urlsplit(target).hostname or address[:40]
            raise HTTPError(
                400, f"The image is at {host[:80]}, and only {self._url} is asked for images."
            )
        # Names of files may have spaces and letters of any script, which a request cannot.
        path = quote(target.removeprefix(self._url), safe=_SAFE, errors="replace")
        return self._get(self._url + path, is_stored=address.startswith("tasks/"))

    def _top(self, address: object) -> int:
        is_data = isinstance(address, str) and address.startswith("data:")
        return self._limits.json_bytes if is_data else _MAX_ADDRESS

    def _get(self, target: str, *, is_stored: bool) -> bytes:
        opener = urllib.request.build_opener(_Redirects(None if is_stored else str(self._url)))
        request = urllib.request.Request(target)
        if self._token:
            # Not sent along if Label Studio redirects to a storage.
            request.add_unredirected_header("Authorization", self._authorization())
        content = bytearray()
        try:
            with opener.open(request, timeout=_TIMEOUT_SEC) as answer:
                while chunk := answer.read(_CHUNK):
                    content += chunk
                    if len(content) > self._limits.upload_bytes:
                        raise HTTPError(413, too_many_bytes(self._limits))
        except urllib.error.HTTPError as error:
            hint = " Check LABEL_STUDIO_API_KEY." if error.code in (401, 403) else ""
            raise HTTPError(
                502, f"Label Studio answered {error.code} for the image.{hint}"
            ) from error
        except (OSError, HTTPException, KeyError, ValueError) as error:
            raise HTTPError(502, f"Label Studio at {self._url} cannot be reached.") from error
        return bytes(content)

    def _authorization(self) -> str:
        """Header for the token: a personal access token is exchanged for a short-lived one."""
        token = str(self._token)
        if token.count(".") != 2:
            return f"Token {token}"
        with self._lock:
            if self._access is None or self._access[1] < time.monotonic():
                request = urllib.request.Request(
                    urljoin(str(self._url), "api/token/refresh"),
                    json.dumps({"refresh": token}).encode(),
                    {"content-type": "application/json"},
                )
                with urllib.request.urlopen(request, timeout=_TIMEOUT_SEC) as answer:
                    found = json.loads(answer.read(1 << 16))
                self._access = (str(found["access"]), time.monotonic() + _TOKEN_SEC)
            return f"Bearer {self._access[0]}"
