"""The floors of the house: a lower floor never imports a higher one."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "core": 0,
    "ops": 1,
    "text": 1,
    "parallel": 1,
    "models": 2,
    "matching": 3,
    "criterion": 4,
    "train": 5,
    "evals": 5,
    "inference": 5,
    "convert": 5,
    "config": 5,
    "demo": 6,
    "main": 6,
    "__main__": 6,
}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def _floor_of(path: Path) -> str:
    relative = path.relative_to(ROOT / "semsam_jax")
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", _files("semsam_jax"), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_lower_floor_imports_a_higher_one(path):
    own = _floor_of(path)
    if own == "__init__":
        return
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] != "semsam_jax" or len(parts) < 2 or parts[1] not in FLOORS:
            continue
        assert FLOORS[parts[1]] <= FLOORS[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", _files("data_pipelines"), ids=lambda p: str(p.relative_to(ROOT)))
def test_data_pipelines_import_no_jax(path):
    for name in _imports(path):
        assert name.split(".")[0] not in ("jax", "flax", "optax", "orbax"), name
        if name.startswith("semsam_jax"):
            assert name.startswith("semsam_jax.core") or name == "semsam_jax", name
            assert "errors" in name or name in ("semsam_jax", "semsam_jax.core"), name


@pytest.mark.parametrize("path", _files("semsam_jax/inference"), ids=lambda p: p.name)
def test_inference_imports_neither_train_nor_data(path):
    for name in _imports(path):
        assert not name.startswith(("semsam_jax.train", "data_pipelines")), name


@pytest.mark.parametrize("path", _files("configs"), ids=lambda p: p.name)
def test_configs_import_only_ml_collections_and_each_other(path):
    for name in _imports(path):
        assert name.startswith(("ml_collections", "configs")), name


def test_importing_the_package_imports_no_jax():
    import subprocess
    import sys

    code = "import sys, semsam_jax; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_torch_or_tensorflow_anywhere():
    for folder in ("semsam_jax", "data_pipelines", "configs", "tests", "benchmarks"):
        for path in _files(folder):
            for name in _imports(path):
                assert name.split(".")[0] not in ("torch", "tensorflow", "torchvision"), path
