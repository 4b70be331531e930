"""Weights by name, from a server on this machine that drops, redirects, lies and stops."""

import base64
import hashlib
import http.server
import json
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from semsam_jax.__main__ import main
from semsam_jax.convert import download as downloads
from semsam_jax.convert import zoo
from semsam_jax.convert.card import model_card
from semsam_jax.convert.download import download
from semsam_jax.core import checkpoint_io, model_files
from semsam_jax.core.errors import CheckpointError, SemSamError
from semsam_jax.inference.loading import load_model

DATA = Path(__file__).parent.parent / "golden" / "data"
CONTENT = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(has_body=False)

    def do_GET(self):
        self.answer(has_body=True)

    def answer(self, has_body):
        server, path = self.server.owner, self.path.partition("?")[0]
        server.asked.append((path, self.headers.get("Range")))
        if path == "/moved":
            return self.send(302, b"", {"Location": "/file"})
        if path == "/page":
            return self.send(200, b"<html>log in</html>", {"Content-Type": "text/html"})
        if path == "/page_in_disguise":
            return self.send(200, b"\n<!DOCTYPE html><html>", {})
        if path == "/busy" and server.failures > 0:
            server.failures -= 1
            return self.send(503, b"", {})
        content = server.files.get(path)
        if content is None:
            return self.send(404, b"nothing", {"X-Error-Code": "RepoNotFound"})
        headers = {"ETag": f'"{server.etag}"', "Accept-Ranges": "bytes"}
        if "/resolve/" in path:
            headers["X-Repo-Commit"] = "a" * 40
            headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'  # names the cached file
        start = 0
        ranged = self.headers.get("Range")
        if (
            ranged
            and path != "/no_ranges"
            and self.headers.get("If-Range") in (None, f'"{server.etag}"')
        ):
            start = int(ranged.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        stop = len(body)
        if path in ("/drops", "/no_ranges") and server.failures > 0:
            server.failures -= 1
            stop = min(stop, 100_000)
        return self.send(206 if start else 200, body, headers, stop if has_body else 0)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server.owner
        if self.headers.get("Authorization") != "Bearer good":
            return self.send(401, b'{"error": "Invalid credentials"}', {})
        if self.path == "/api/repos/create":
            answer = {"url": f"{server.url}/me/mine"}
        elif self.path == "/api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            about = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": name} | about for name in names]
            answer = {"files": files}
        else:
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    name = f"/me/mine/resolve/main/{row['value']['path']}"
                    server.files[name] = base64.b64decode(row["value"]["content"])
            answer = {
                "commitUrl": f"{server.url}/me/mine/commit/1",
                "commitOid": "1" * 40,
                "success": True,
            }
        return self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def send(self, status, body, headers, stop=None):
        self.send_response(status)
        # No connection is kept: a client may not meet a kept one while it is being closed.
        headers = {"Content-Type": "application/octet-stream", "Connection": "close"} | headers
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:stop])


class Server:
    def __init__(self):
        self.files = dict.fromkeys(("/file", "/drops", "/no_ranges", "/busy"), CONTENT)
        self.files["/tiny.pth"] = (DATA / "tiny_ref.pth").read_bytes()
        self.asked, self.failures, self.etag = [], 0, "one"
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.owner = self
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, "_WAIT_SEC", 0.01)
    monkeypatch.setenv("SEMSAM_JAX_CACHE", str(tmp_path / "cache"))
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.close()


def test_a_file_is_downloaded_once_through_a_redirect(server, tmp_path, capsys):
    target = tmp_path / "new" / "file.bin"
    assert download(f"{server.url}/moved", target) == SHA
    assert target.read_bytes() == CONTENT
    assert "no value is known to compare it with" in capsys.readouterr().out
    assert download(f"{server.url}/moved", target, sha256=SHA) == SHA
    assert [path for path, _ in server.asked] == ["/moved", "/file"]
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_a_download_goes_on_after_drop_outs(server, tmp_path):
    server.failures = 2
    assert download(f"{server.url}/drops", tmp_path / "a", sha256=SHA, size=300_000) == SHA
    assert [ranged for _, ranged in server.asked] == [None, "bytes=100000-", "bytes=200000-"]
    server.failures = 2  # a server that always starts from the beginning
    assert download(f"{server.url}/no_ranges", tmp_path / "b", sha256=SHA) == SHA
    server.failures = 3
    assert download(f"{server.url}/busy", tmp_path / "c", sha256=SHA) == SHA


def test_a_later_call_goes_on_unless_the_file_has_changed(server, tmp_path):
    for number, etag in enumerate(("one", "two")):
        target = tmp_path / f"file{number}"
        server.etag, server.failures = "one", 99
        with pytest.raises(CheckpointError, match="resumes where it stopped"):
            download(f"{server.url}/no_ranges", target)
        assert not target.exists()
        assert target.with_name(f"{target.name}.part").stat().st_size == 100_000
        server.etag, server.failures = etag, 0
        server.files["/no_ranges"] = server.files["/drops"]
        server.asked.clear()
        assert download(f"{server.url}/no_ranges", target, sha256=SHA) == SHA


@pytest.mark.parametrize("path", ["page", "page_in_disguise"])
def test_a_web_page_is_no_file(server, tmp_path, path):
    with pytest.raises(CheckpointError, match="web page instead of the file"):
        download(f"{server.url}/{path}", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_another_hash_or_size_is_refused(server, tmp_path):
    with pytest.raises(CheckpointError, match=rf"SHA-256 {SHA}, expected 00.*a\.unverified"):
        download(f"{server.url}/file", tmp_path / "a", sha256="00")
    assert not (tmp_path / "a").exists()
    with pytest.raises(CheckpointError, match="300000 bytes, expected 5"):
        download(f"{server.url}/file", tmp_path / "b", size=5)
    with pytest.raises(CheckpointError, match="404"):
        download(f"{server.url}/nothing", tmp_path / "c")
    (tmp_path / "d").write_bytes(b"another file")  # put there by hand, as a message suggests
    with pytest.raises(CheckpointError, match=f"expected {SHA}; it is not the file"):
        download(f"{server.url}/file", tmp_path / "d", sha256=SHA)


def test_folders_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match="SEMSAM_JAX_CACHE"):
        download(f"{server.url}/file", tmp_path / "file" / "a")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(server, tmp_path):
    target = tmp_path / "a"
    target.with_name("a.part").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"No space left.*free some space.*SEMSAM_JAX_CACHE"):
        download(f"{server.url}/file", target)
    assert not target.exists()


def test_a_cache_that_is_read_only_is_one_line(server, monkeypatch, capsys):
    monkeypatch.setitem(zoo.RELEASES, "swin_t", zoo.Release(f"{server.url}/tiny.pth"))
    monkeypatch.setenv("SEMSAM_JAX_CACHE", "/proc/1/cache")
    image = DATA.parents[1] / "data" / "coffee.jpg"
    command = [
        "segment",
        str(image),
        "--point",
        "5,5",
        "--checkpoint",
        "swin_t",
        "--out",
        "/proc/1/x",
    ]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "SEMSAM_JAX_CACHE" in error


def test_a_folder_of_another_project_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "sam"}')
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="schema version"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("<html>")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(tmp_path)


def _download(url, target):
    download(url, Path(target), sha256=SHA)


def test_two_processes_download_once(server, tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = (f"{server.url}/file", str(tmp_path / "a"))
    processes = [context.Process(target=_download, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_release_is_fetched_converted_and_kept(server, monkeypatch, capsys):
    url = f"{server.url}/tiny.pth"
    monkeypatch.setitem(zoo.RELEASES, "swin_t", zoo.Release(url))
    model = load_model("swin_t")
    shown = capsys.readouterr().out
    assert url in shown
    assert "state no licence" in shown
    assert model.meta["source"] == url
    assert len(model.meta["source_sha256"]) == 64
    server.close()
    assert load_model("swin_t").fingerprint() == model.fingerprint()  # without a connection
    root = checkpoint_io.cache_dir() / "models"
    assert [path.name for path in root.iterdir()] == ["swin_t"]


def test_offline_and_not_cached_is_one_line(server, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(zoo.RELEASES, "swin_l", zoo.Release("http://127.0.0.1:9/x/swinl.pth"))
    image = DATA.parents[1] / "data" / "coffee.jpg"
    command = ["segment", str(image), "--point", "5,5", "--checkpoint", "swin_l"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "http://127.0.0.1:9/x/swinl.pth" in error
    assert str(checkpoint_io.cache_dir() / "models" / "swinl.pth") in error


def test_a_file_put_there_by_hand_is_taken(server, monkeypatch):
    monkeypatch.setitem(zoo.RELEASES, "swin_l", zoo.Release("http://127.0.0.1:9/x/swinl.pth"))
    file = checkpoint_io.cache_dir() / "models" / "swinl.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes((DATA / "tiny_ref.pth").read_bytes())
    assert zoo.resolve("swin_l") == file.parent / "swin_l"
    assert model_files.has_model(zoo.resolve("swin_l"))


def test_names_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert zoo.resolve(None) is None
    assert zoo.resolve("lite") == checkpoint_io.SHIPPED
    assert zoo.resolve(tmp_path) == tmp_path
    assert zoo.resolve("runs/mine") == "runs/mine"
    (tmp_path / "swin_t").mkdir()
    assert zoo.resolve("swin_t") == "swin_t"  # the user's own folder
    with pytest.raises(CheckpointError, match="hf://OWNER/NAME"):
        zoo.resolve("hf://only")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swint", r"not the name of a model \(known: lite, swin_t, .*; did you mean 'swin_t'\?"),
        ("SWIN-L", "did you mean 'swin_l'"),
        ("vit_h", r"known: lite, swin_t, swin_l, hf://OWNER/NAME\)\.$"),
        ("https://huggingface.co/me/mine/tree/main", "a web address; expected hf://me/mine"),
        ("https://example.com/a.pth", "a web address; expected the path of the file"),
        ("ftp://example.com/a.pth", "ftp:// addresses cannot be opened; expected a folder"),
        ("runs/none", "no such folder or file"),
    ],
)
def test_what_is_no_model_is_told_in_one_line(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SemSamError, match=message):
        load_model(name)


def test_the_card_of_a_fine_tuned_model_has_its_figures():
    evaluation = {"iou_max": 0.5, "mask_ap": 0.125, "num_instances": 7, "classes": {"cat": {}}}
    card = model_card("me/mine", {"preset": "lite", "evaluation": evaluation}, "mit")
    line = "- on 7 held-out masks of its run, percent: one-click IoU 50.0, mask AP 12.5"
    assert line in card.splitlines()
    assert "held-out" not in model_card("me/mine", {"preset": "lite"}, "mit")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><title>Log in</title>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "run `git lfs pull`"),
    ],
)
def test_files_that_stand_where_weights_should_be(tmp_path, content, message):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(SemSamError, match=message):
        load_model(tmp_path / "a.pth")
    (tmp_path / "config.json").write_bytes((checkpoint_io.SHIPPED / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(SemSamError, match=message):
        load_model(tmp_path)


def test_a_repository_is_pushed_and_loaded(server, monkeypatch, tmp_path, capsys):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "good")
    monkeypatch.setitem(zoo.RELEASES, "swin_t", zoo.Release(f"{server.url}/tiny.pth"))
    folder = zoo.resolve("swin_t")
    assert main(["push", str(folder), "hf://me/mine", "--license", "cc-by-4.0"]) == 0
    assert "/me/mine/commit/1" in capsys.readouterr().out
    card = server.files["/me/mine/resolve/main/README.md"].decode()
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: semsam-jax\n")
    assert "pipeline_tag: mask-generation" in card
    assert 'load_model("hf://me/mine")' in card
    model = load_model("hf://me/mine")
    assert model.fingerprint() == load_model(folder).fingerprint()
    monkeypatch.setenv("HF_TOKEN", "bad")
    assert main(["push", str(folder), "hf://me/mine", "--license", "mit"]) == 2
    assert "HF_TOKEN" in capsys.readouterr().err
    for wrong in ("me/mine", "hf://me/mine@v1"):
        assert main(["push", str(folder), wrong, "--license", "mit"]) == 2
    with pytest.raises(CheckpointError, match="private one needs"):
        load_model("hf://me/other")
    server.files["/you/other/resolve/main/config.json"] = b'{"model_type": "sam"}'
    server.files["/you/other/resolve/main/model.safetensors"] = b"x"
    with pytest.raises(CheckpointError, match="schema version"):
        load_model("hf://you/other")
    server.close()
    assert load_model("hf://me/mine").fingerprint() == model.fingerprint()
    with pytest.raises(CheckpointError, match="not in the cache"):
        load_model("hf://me/third")
    assert os.listdir(checkpoint_io.cache_dir() / "models") == ["swin_t"]
