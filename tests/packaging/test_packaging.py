"""What is shipped: complete, installable into a fresh environment, quick to import."""

import json
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from semsam_jax.__main__ import _COMMANDS
from tests.packaging.conftest import ROOT

pytestmark = pytest.mark.timeout(1800)
IMPORT_SEC = 0.3
PYTHONS = ("3.11", "3.12", "3.13")


def wheel_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_code_types_sample_page_and_recipes(wheel_names):
    for name in (
        "data_pipelines/vocabularies/coco.json",
        "data_pipelines/sample/README.md",
        "data_pipelines/sample/data/ATTRIBUTION.csv",
        "configs/joint.py",
        "semsam_jax/weights/lite/README.md",
    ):
        assert name in wheel_names, name
    # All files of the package but the READMEs of its folders, and the whole sample.
    for path in [*ROOT.glob("semsam_jax/**/*"), *ROOT.glob("data_pipelines/sample/data/**/*")]:
        if path.is_file() and path.name != "README.md" and "__pycache__" not in path.parts:
            assert path.relative_to(ROOT).as_posix() in wheel_names
    assert not [n for n in wheel_names if n.startswith(("tests/", "benchmarks/", "launch/"))]


def test_the_sdist_holds_everything_the_wheel_is_made_of(sdist, wheel_names):
    with tarfile.open(sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    missing = [n for n in wheel_names if ".dist-info/" not in n and n not in names]
    assert missing == []
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= names
    assert not [n for n in names if n.startswith(("tests", "benchmarks", "launch", "docs"))]


def test_the_pythons_named_are_those_the_dependencies_allow(wheel):
    found = wheel_metadata(wheel)
    supported = SpecifierSet(found["Requires-Python"])
    named = [c.rsplit(" ", 1)[1] for c in found.get_all("Classifier") if "Python :: 3." in c]
    assert tuple(named) == PYTHONS
    assert all(f"{python}.0" in supported for python in PYTHONS)
    assert "3.10.9" not in supported
    # Older ones get older releases of some dependencies, which are not installed here.
    not_older = PYTHONS[PYTHONS.index("{}.{}".format(*sys.version_info)) :]
    for line in found.get_all("Requires-Dist"):
        requirement = Requirement(line)
        if requirement.marker is not None:
            continue
        needs = metadata.metadata(requirement.name)["Requires-Python"] or ""
        for python in not_older:
            assert f"{python}.9" in SpecifierSet(needs), (requirement.name, needs)


def test_importing_is_quick_and_loads_no_jax(fresh):
    code = (
        "import sys, time; start = time.perf_counter(); import semsam_jax; "
        "spent = time.perf_counter() - start; import json; "
        "print(json.dumps([spent, 'jax' in sys.modules, semsam_jax.__file__]))"
    )
    results = [json.loads(fresh.run(["-c", code]).stdout) for _ in range(3)]
    assert min(spent for spent, _, _ in results) < IMPORT_SEC
    assert not any(has_jax for _, has_jax, _ in results)
    assert all(str(fresh.folder) in file for _, _, file in results)


def test_help_needs_no_jax(fresh):
    code = (
        "import sys\n"
        "from semsam_jax.__main__ import main, _COMMANDS\n"
        "for words in [[], *([c] for c in _COMMANDS)]:\n"
        "    try: main([*words, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "print('JAX' if 'jax' in sys.modules else 'NONE')\n"
    )
    done = fresh.run(["-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: semsam") == len(_COMMANDS) + 1
    assert done.stdout.rstrip().endswith("NONE")


def test_an_image_is_segmented_from_the_installed_wheel(fresh, finished):
    """The quickstart runs from the wheel in tests/notebooks (`train_and_fine_tune`)."""
    workdir, _ = finished
    image = next((ROOT / "data_pipelines/sample/data/coco/val2017").glob("*.jpg"))
    command = ["-m", "semsam_jax", "segment", image, "--point", "50,60", "--out", "out"]
    done = fresh.run([*command, "--checkpoint", workdir])
    assert done.returncode == 0, done.stderr[-3000:]
    assert (fresh.folder / "out" / "masks.json").exists()
