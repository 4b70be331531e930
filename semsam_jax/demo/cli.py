"""python -m semsam_jax demo: one server for the page, the HTTP API and annotation tools."""

import argparse
import ipaddress
import os
import re
import socket
import sys
from urllib.parse import urlsplit

from semsam_jax.core.errors import ConfigError
from semsam_jax.inference import arguments

_MAX_CONNECTIONS = 400


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the parser of `demo`."""
    parser = commands.add_parser(
        "demo",
        help="serve the web page, HTTP API and annotation backends",
        description="Serves a web page, an HTTP API (described at /docs) and the backends of Label "
        "Studio (/label-studio) and X-AnyLabeling on one port of this machine. Needs `pip install "
        "'semsam-jax[demo]'`.",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 serves the whole network (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument(
        "--max-upload-mb",
        type=int,
        default=20,
        metavar="MB",
        help="largest image file (default: %(default)s)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=int,
        default=50,
        metavar="N",
        help="largest image in megapixels (default: %(default)s)",
    )
    parser.add_argument(
        "--behind-proxy",
        metavar="ADDRESS",
        help="address of a reverse proxy whose X-Forwarded-For header is trusted",
    )
    parser.add_argument(
        "--public-url",
        metavar="URL",
        help="public address behind a reverse proxy, including its path, such as "
        "https://lab.example/tools/semsam",
    )
    parser.add_argument(
        "--token",
        metavar="TOKEN",
        help="secret that every visitor and program must send, at least 16 characters; better set "
        "in the variable SEMSAM_TOKEN (default: none)",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="another site whose pages may call the API, such as https://tool.example",
    )
    parser.add_argument(
        "--label-studio-url",
        metavar="URL",
        help="address of Label Studio, from which task images are fetched; a user's token is "
        "read from LABEL_STUDIO_API_KEY",
    )
    arguments.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C."""
    limits = _limits(args)
    public_url = _checked_url("--public-url", args.public_url)
    label_studio_url = _checked_url("--label-studio-url", args.label_studio_url)
    token = _checked_token(args.token or os.environ.get("SEMSAM_TOKEN"))
    listener = _listen(args.host, args.port)
    with listener:
        try:
            import uvicorn

            from semsam_jax.demo.server import ServerSettings, build_app
        except ImportError as error:
            raise ConfigError(
                f"demo: {error.name} is not installed; run `pip install 'semsam-jax[demo]'`."
            ) from error
        model = arguments.load_from_args(args)
        print("preparing the model ...", file=sys.stderr, flush=True)
        settings = ServerSettings(
            is_local=_is_loopback(args.host),
            public_url=public_url,
            token=token,
            origins=tuple(_checked_origin(origin) for origin in args.allow_origin),
            label_studio_url=label_studio_url,
            label_studio_token=os.environ.get("LABEL_STUDIO_API_KEY"),
            title=_title(args.checkpoint, model.meta.get("preset")),
        )
        app = build_app(model, limits, settings)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=3,
            proxy_headers=bool(args.behind_proxy),
            forwarded_allow_ips=args.behind_proxy,
        )
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        key = f"/?token={token}" if token else ""
        print(f"semsam_jax demo: http://{shown}:{port}{key}   (Ctrl-C stops it)", flush=True)
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _limits(args: argparse.Namespace):
    from semsam_jax.demo.limits import Limits

    if not 1 <= args.max_upload_mb <= 200:
        raise ConfigError(f"--max-upload-mb: got {args.max_upload_mb}; expected 1..200.")
    if not 1 <= args.max_megapixels <= 150:
        raise ConfigError(f"--max-megapixels: got {args.max_megapixels}; expected 1..150.")
    upload = args.max_upload_mb << 20
    return Limits(
        upload_bytes=upload,
        upload_bytes_together=max(Limits.upload_bytes_together, 2 * upload),
        pixels=args.max_megapixels * 1_000_000,
    )


def _checked_url(flag: str, url: str | None) -> str | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_whole = is_whole and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:
        is_whole = False
    if (
        not is_whole
        or parts.username is not None
        or not re.fullmatch("[-A-Za-z0-9._~/%]*", parts.path)
    ):
        raise ConfigError(
            f"{flag}: got {url!r}; expected a whole address, such as "
            f"https://lab.example/tools/semsam."
        )
    return url


def _checked_origin(url: str) -> str:
    whole = _checked_url("--allow-origin", url) or ""
    parts = urlsplit(whole)
    if parts.path not in ("", "/"):
        raise ConfigError(f"--allow-origin: got {url!r}; expected a site without a path.")
    return f"{parts.scheme}://{parts.netloc}".lower()


def _checked_token(token: str | None) -> str | None:
    if token is None or re.fullmatch("[-A-Za-z0-9._~]{16,200}", token):
        return token
    raise ConfigError("--token: expected 16 to 200 letters, digits, or any of -._~ in it.")


def _title(checkpoint: str | None, preset: object) -> str:
    """The model's name on the page: the end of the path that the user gave, and its preset."""
    name = "/".join(str(checkpoint or "lite").rstrip("/").split("/")[-2:])
    return name if preset in (None, name) else f"{name} ({preset})"


def _listen(host: str, port: int) -> socket.socket:
    """Binds the port before the model is loaded, so that an occupied one is reported at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"demo: cannot listen on {host}:{port} ({error}); choose another --host or --port, "
            f"for example --port 0 for any free one."
        ) from error
    return listener


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
