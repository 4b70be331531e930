"""Every command explains itself and each of its options."""

import argparse
import importlib
import re
import subprocess
import sys

import pytest

from semsam_jax import __main__ as command_line
from semsam_jax.config import fields
from tests.packaging.conftest import ROOT

GROUPS = ("model", "text", "data", "optimizer", "loss", "refit")  # each is a class of its own


def shown_parser(call, monkeypatch):
    """The parser whose help `call` prints."""
    found = []
    monkeypatch.setattr(
        argparse.ArgumentParser, "print_help", lambda self, file=None: found.append(self)
    )
    with pytest.raises(SystemExit) as end:
        call()
    assert end.value.code == 0
    (parser,) = found
    return parser


def assert_explained(parser):
    assert parser.description
    for action in parser._actions:
        name = "/".join(action.option_strings) or action.dest
        assert action.help, f"{parser.prog}: {name} has no help"
        assert len(action.help) < 250
    text = parser.format_help()  # a stray % in a help text fails here
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize("name", command_line._COMMANDS)
def test_each_command_explains_its_options(name, monkeypatch):
    parser = shown_parser(lambda: command_line.main([name, "--help"]), monkeypatch)
    assert_explained(parser)
    module, summary = command_line._COMMANDS[name]
    # The list of commands repeats each summary, so that listing them imports none of them.
    commands = argparse.ArgumentParser().add_subparsers()
    importlib.import_module(module).add_parser(commands)
    assert summary == commands._choices_actions[0].help


@pytest.mark.parametrize("name", ["check", "build"])
def test_data_commands_explain_their_options(name, monkeypatch):
    parser = shown_parser(lambda: command_line.main(["data", name, "--help"]), monkeypatch)
    assert parser.prog == f"semsam data {name}"
    assert_explained(parser)


def test_a_data_command_that_is_not_there_is_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        command_line.main(["data", "chek"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for name in ("chek", "check", "build", "inspect"):
        assert f"'{name}'" in line


def test_the_list_of_commands_has_examples_of_real_commands(monkeypatch, capsys):
    parser = shown_parser(lambda: command_line.main(["--help"]), monkeypatch)
    text = parser.format_help()
    for name in command_line._COMMANDS:
        assert re.search(rf"\n +{name}\s", text), name
    examples = [line.split()[1] for line in text.splitlines() if line.startswith("  semsam ")]
    assert len(examples) > 5
    assert set(examples) <= {*command_line._COMMANDS, "train", "data"}


def test_help_of_training_names_its_flags_and_how_to_set_keys():
    command = [sys.executable, "-m", "semsam_jax.main", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    for flag in ("--config:", "--workdir:", "--profile:", "--[no]traceback:", "--config.steps="):
        assert flag in done.stdout
    assert "resumes" in done.stdout


def test_the_page_of_keys_explains_every_key():
    """`--help` sends the reader to config/fields.py: each field is in a docstring there."""
    for name, kind in vars(fields).items():
        if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__"):
            if kind.__module__ != fields.__name__:
                continue
            # What a class inherits is explained where it comes from.
            explained = "".join(base.__doc__ or "" for base in kind.__mro__[:-1])
            for field in set(kind.__dataclass_fields__) - set(GROUPS):
                assert re.search(rf"\b{field}\b", explained), f"{name}.{field}"
