"""python -m semsam_jax demo: the web page, on this machine or for a network."""

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
        help="interactive web demo",
        description="Opens a web page on this machine. Needs `pip install 'semsam_jax[demo]'`.",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 serves the whole network (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    parser.add_argument(
        "--max-upload-mb", type=int, default=20, help="largest image file (default: %(default)s)"
    )
    parser.add_argument(
        "--max-megapixels", type=int, default=50, help="largest image (default: %(default)s)"
    )
    parser.add_argument(
        "--behind-proxy",
        metavar="ADDRESS",
        help="address of a reverse proxy whose X-Forwarded-For header is trusted",
    )
    parser.add_argument(
        "--public-url",
        metavar="URL",
        help="where visitors see the page if a proxy stands in front of it, with its path, such as "
        "https://lab.example/tools/semsam",
    )
    arguments.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C."""
    limits = _limits(args)
    public_url = _checked_url(args.public_url)
    listener = _listen(args.host, args.port)
    with listener:
        # Before Gradio is imported: it reads these once, and must not report to anybody.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        try:
            import uvicorn

            from semsam_jax.demo.server import build_app
        except ImportError as error:
            raise ConfigError(
                f"demo: {error.name} is not installed; run `pip install 'semsam_jax[demo]'`."
            ) from error
        model = arguments.load_from_args(args)
        print("preparing the model ...", file=sys.stderr, flush=True)
        is_local = _is_loopback(args.host)
        app = build_app(model, limits, is_local=is_local, public_url=public_url)
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
        print(f"semsam_jax demo: http://{shown}:{port}   (Ctrl-C stops it)", flush=True)
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _limits(args: argparse.Namespace):
    from semsam_jax.demo.limits import Limits

    if not 1 <= args.max_upload_mb <= 200:
        raise ConfigError(f"--max-upload-mb: got {args.max_upload_mb}; wanted 1..200.")
    if not 1 <= args.max_megapixels <= 150:
        raise ConfigError(f"--max-megapixels: got {args.max_megapixels}; wanted 1..150.")
    upload = args.max_upload_mb << 20
    return Limits(
        upload_bytes=upload,
        upload_bytes_together=max(Limits.upload_bytes_together, 2 * upload),
        pixels=args.max_megapixels * 1_000_000,
    )


def _checked_url(url: str | None) -> str | None:
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
            f"--public-url: got {url!r}; wanted the whole address of the page, such as "
            f"https://lab.example/tools/semsam."
        )
    return url


def _listen(host: str, port: int) -> socket.socket:
    """Takes the port before the model is loaded: a taken port should not cost that wait."""
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
