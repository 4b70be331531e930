"""The installed commands in a folder of the user that has a package `configs` of its own."""

import pytest

import semsam_jax

OWN = """\
from configs.helper import NOWHERE
from configs.joint import get_config as joint

def get_config():
    config = joint()
    config.data.root = NOWHERE
    return config
"""


@pytest.fixture
def folder(tmp_path):
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "__init__.py").write_text("raise RuntimeError('not a package of semsam_jax')\n")
    (configs / "helper.py").write_text("NOWHERE = 'nowhere/of/its/own'\n")
    (configs / "own.py").write_text(OWN)
    return tmp_path


def test_configurations_of_the_package_are_found(fresh, folder):
    """Far enough to know that it was read with its modules: the data it names is missing."""
    command = ["-m", "semsam_jax.main", "--config", "configs/joint.py", "--workdir=run"]
    done = fresh.run([*command, "--data.root=nowhere"], cwd=folder)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("semsam train: data.root nowhere: no folder ")


def test_configurations_of_the_user_may_build_on_those_of_the_package(fresh, folder):
    script = fresh.python.with_name("semsam")
    done = fresh.run([script, "train", "--config=configs/own.py", "--workdir=run"], cwd=folder)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("semsam train: data.root nowhere/of/its/own: no folder")


def test_the_script_says_its_version(fresh, folder):
    done = fresh.run([fresh.python.with_name("semsam"), "--version"], cwd=folder)
    assert done.stdout == f"semsam_jax {semsam_jax.__version__}\n"
