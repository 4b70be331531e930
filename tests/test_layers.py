"""The layers of the package: a lower layer never imports a higher one. And sizes and names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "core": 0,
    "ops": 1,
    "text": 1,
    "parallel": 1,
    "models": 2,
    "matching": 3,
    "convert": 3,
    "criterion": 4,
    "inference": 5,
    "adapters": 6,
    "evals": 6,
    "config": 7,
    "train": 8,
    "demo": 8,
    "main": 9,
    "__main__": 10,
}
"""Packages and modules of semsam_jax; each may import what stands strictly lower, and itself."""
JAX = ("jax", "jaxlib", "flax", "optax", "orbax")
NEVER = ("torch", "torchvision", "tensorflow")


def _imports(path: Path) -> set[str]:
    """Every module or name that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _imports_below(*places: str) -> list[tuple[str, str]]:
    """File and imported name, for all files of these folders or modules."""
    files = []
    for place in places:
        path = ROOT / place
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    assert files
    return [(str(f.relative_to(ROOT)), name) for f in files for name in sorted(_imports(f))]


def test_every_module_has_a_layer():
    found = {path.stem for path in (ROOT / "semsam_jax").glob("*.py")}
    found |= {path.parent.name for path in (ROOT / "semsam_jax").glob("*/__init__.py")}
    assert found - {"__init__"} == LAYERS.keys()


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_lower_ones_only(layer):
    for file, name in _imports_below(f"semsam_jax/{layer}"):
        _, _, rest = name.partition("semsam_jax.")
        other = rest.partition(".")[0]
        if name.startswith("semsam_jax.") and other in LAYERS and other != layer:
            assert LAYERS[other] < LAYERS[layer], f"{file} imports {name}"


def test_data_pipelines_import_no_jax_and_little_of_the_package():
    for file, name in _imports_below("data_pipelines"):
        assert name.split(".")[0] not in JAX, f"{file} imports {name}"
        if name.split(".")[0] == "semsam_jax":
            allowed = ("semsam_jax", "semsam_jax.core")
            modules = tuple(
                f"semsam_jax.core.{name}"
                for name in ("errors", "ending", "rle", "distance", "spelling")
            )
            is_allowed = name in allowed or name.startswith(modules)
            assert is_allowed, f"{file} imports {name}"


def test_inference_imports_neither_train_nor_data():
    for file, name in _imports_below("semsam_jax/inference"):
        assert not name.startswith(("semsam_jax.train", "data_pipelines")), f"{file}: {name}"


def test_configs_import_only_ml_collections_the_defaults_and_each_other():
    for file, name in _imports_below("configs"):
        is_defaults = name.startswith("semsam_jax.config")
        known = name.split(".")[0] in ("ml_collections", "configs")
        assert known or is_defaults, f"{file} imports {name}"


def test_no_torch_or_tensorflow_anywhere():
    for file, name in _imports_below(
        "semsam_jax", "data_pipelines", "configs", "tests", "benchmarks"
    ):
        assert name.split(".")[0] not in NEVER, f"{file} imports {name}"


def test_importing_the_package_imports_no_jax():
    code = "import sys, semsam_jax; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_file_is_longer_than_400_lines():
    folders = ("semsam_jax", "data_pipelines", "configs", "launch", "benchmarks", "tools", "tests")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}
    assert not {file: length for file, length in lengths.items() if length > 400}


def test_no_two_types_have_one_name():
    found: dict[str, list[Path]] = {}
    for path in [*ROOT.glob("semsam_jax/**/*.py"), *ROOT.glob("data_pipelines/**/*.py")]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name.lstrip("_"), []).append(path.relative_to(ROOT))
    assert not {name: paths for name, paths in found.items() if len(paths) > 1}
