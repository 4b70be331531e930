import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import COMPILE_QUICKLY
from tests.e2e.conftest import cache, finished  # noqa: F401

ROOT = Path(__file__).parents[2]


class Fresh:
    """A new environment with the built wheel; what it depends on comes from this one."""

    def __init__(self, folder: Path, wheel: Path):
        self.folder, self.wheel = folder, wheel
        self.python = folder / "venv" / "bin" / "python"
        venv.create(folder / "venv", with_pip=False)  # finds pip there, too
        # A plain path line: packages are found there, installed-in-place projects are not.
        site = next((folder / "venv" / "lib").glob("python3*/site-packages"))
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", str(wheel)]
        done = self.run(install)
        assert done.returncode == 0, done.stderr

    def environment(self):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SEMSAM_"))}
        kept |= {"JAX_PLATFORMS": "cpu", "SEMSAM_JAX_CACHE": str(self.folder / "cache")}
        # Small runs compile the same programs everywhere: once is enough. What the compiler is
        # told is a part of the key, so it is told the same as in tests/e2e.
        return kept | COMPILE_QUICKLY

    def run(self, args, cwd=None):
        return subprocess.run(
            [str(self.python), *map(str, args)],
            cwd=cwd or self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=1500,
        )


def build(kind: str, source: Path, out: Path) -> Path:
    """Builds an sdist or a wheel with this environment's setuptools."""
    call = f"import setuptools.build_meta as b; print(b.build_{kind}({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=source, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """The tracked and new files of the checkout, without what other tests leave in it."""
    folder = tmp_path_factory.mktemp("sources")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def sdist(sources, tmp_path_factory):
    return build("sdist", sources, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheel(sdist, tmp_path_factory):
    """Built from the sdist, so that the sdist is known to be complete."""
    import tarfile

    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = next(path for path in folder.iterdir() if path.is_dir())
    return build("wheel", unpacked, folder)


@pytest.fixture(scope="session")
def wheel_names(wheel):
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="session")
def fresh(wheel, tmp_path_factory):
    return Fresh(tmp_path_factory.mktemp("fresh"), wheel)
