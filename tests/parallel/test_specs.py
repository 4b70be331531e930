"""The stored layout of every parameter of the paper's networks on 16 chips.

    python -m tests.parallel.test_specs

writes the files again, after a change of the rule or of a network that is meant.
"""

from math import prod
from pathlib import Path

import jax
import pytest

from semsam_jax.models import presets
from semsam_jax.models.semantic_sam import SemanticSAM, init_params
from semsam_jax.parallel.sharding import parameter_spec

FSDP = 16
DATA = Path(__file__).parent / "data"


def _shapes(preset: str) -> dict[str, tuple[int, ...]]:
    model = SemanticSAM(presets.model_config(preset))
    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf.shape for p, leaf in leaves}


def _table(preset: str) -> str:
    lines = [
        f"{name} {'x'.join(map(str, shape)) or 'scalar'} {_words(parameter_spec(shape, FSDP))}"
        for name, shape in _shapes(preset).items()
    ]
    return "\n".join(lines) + "\n"


def _words(spec) -> str:
    return ",".join("-" if axis is None else axis for axis in spec) or "whole"


def _file(preset: str) -> Path:
    return DATA / f"specs_{preset}_fsdp{FSDP}.txt"


@pytest.mark.parametrize("preset", ["swin_t", "swin_l"])
def test_layout_is_the_stored_one(preset):
    assert _table(preset).splitlines() == _file(preset).read_text().splitlines()


@pytest.mark.parametrize(("preset", "whole_mib"), [("swin_t", 12), ("swin_l", 12)])
def test_little_stays_whole_on_every_chip(preset, whole_mib):
    """Read from the stored file: what is not split costs each chip little."""
    whole = split = 0
    for line in _file(preset).read_text().splitlines():
        _, sides, spec = line.split()
        size = 4 * prod(int(side) for side in sides.replace("scalar", "1").split("x"))
        if spec == "whole":
            whole += size
        else:
            axis = spec.split(",").index("fsdp")
            assert int(sides.split("x")[axis]) % FSDP == 0, line
            split += size
    assert whole < whole_mib * 2**20
    assert split > 0.95 * (whole + split)


if __name__ == "__main__":
    for name in ("swin_t", "swin_l"):
        _file(name).write_text(_table(name))
