"""Cloud TPU from nothing to a running job, and back to nothing.

    python launch/tpu/pod.py up     --name NAME --zone ZONE --type v5litepod-16 -- TRAIN FLAGS
    python launch/tpu/pod.py create | setup | run | watch | log | stop | delete   (one at a time)

`up` creates the machine, sets it up, starts the job and watches it; when a spot machine is
taken away it starts over, and the job resumes from its checkpoint. Everything goes through
`gcloud`; `--dry-run` prints every command and runs none. Standard library only.
"""

import argparse
import dataclasses
import shlex
import subprocess
import sys
import time

RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
"""Runtime image of each TPU generation."""

GONE = ("PREEMPTED", "TERMINATED", "FAILED", "SUSPENDED", "SUSPENDING", "MISSING")
READY = ("READY", "ACTIVE")
WORKER = "semsam_jax/launch/tpu/worker.sh"


@dataclasses.dataclass(frozen=True)
class Pod:
    """One TPU slice (or several behind one queued resource).

    Methods end the process with a message if `gcloud` is missing or fails.

    Attributes:
        name, zone, project: where it is; an empty project is gcloud's own default.
        type: accelerator type, such as v5litepod-16 or v4-32.
        runtime: image, "" for the usual one of the type.
        is_spot: cheaper, and taken away without much warning.
        is_queued: wait in the queue of queued resources instead of failing when all are taken.
        bucket: Cloud Storage bucket that every worker mounts at ~/runs, "" for none.
        is_dry: print commands only.
    """

    name: str
    zone: str
    project: str = ""
    type: str = "v5litepod-16"
    runtime: str = ""
    is_spot: bool = False
    is_queued: bool = False
    bucket: str = ""
    is_dry: bool = False

    def create(self) -> None:
        """Asks for the machine and waits until it is there."""
        runtime = self.runtime or RUNTIMES[self.type.split("-")[0]]
        spot = ["--spot"] if self.is_spot else []
        if self.is_queued:
            command = ["queued-resources", "create", self.name, "--node-id", self.name]
            command += ["--accelerator-type", self.type, "--runtime-version", runtime, *spot]
        else:
            command = ["tpu-vm", "create", self.name]
            command += ["--accelerator-type", self.type, "--version", runtime, *spot]
        self._gcloud(*command)
        self._wait_until_ready()

    def setup(self) -> None:
        """Copies this checkout to every worker and installs it there."""
        archive = "/tmp/semsam_jax.tar.gz"
        self._run(
            ["git", "archive", "--format=tar.gz", "--prefix=semsam_jax/", "-o", archive, "HEAD"]
        )
        self._gcloud("tpu-vm", "scp", archive, f"{self.name}:{archive}", "--worker=all")
        mount = f"bash {WORKER} mount {shlex.quote(self.bucket)} && " if self.bucket else ""
        self._ssh(f"tar xzf {archive} && {mount}bash {WORKER} install")

    def run(self, train: list[str]) -> None:
        """Starts the job on every worker; it goes on when this command ends.

        Args:
            train: flags of `semsam_jax.main`.
        """
        self._ssh(f"bash {WORKER} start {shlex.join(train)}")

    def status(self) -> str:
        """Returns "running", "done", "failed CODE", "gone" or "unreachable"."""
        if self._state() in GONE:
            return "gone"
        answer = self._ssh(f"bash {WORKER} status", worker="0", is_captured=True)
        return answer.strip().splitlines()[-1] if answer.strip() else "unreachable"

    def watch(self, train: list[str], period_sec: float) -> int:
        """Follows the job to its end; makes a new machine whenever the old one is gone.

        Args:
            train: flags of `semsam_jax.main`, to start it again with.
            period_sec: between two looks.

        Returns:
            The exit code of the job.
        """
        unreachable = 0
        while True:
            status = "done" if self.is_dry else self.status()
            print(f"{time.strftime('%H:%M:%S')} {self.name}: {status}", flush=True)
            if status == "done":
                return 0
            if status.startswith("failed"):
                self.log(num_lines=60)
                return int(status.split()[1])
            unreachable = unreachable + 1 if status == "unreachable" else 0
            if status == "gone" or unreachable >= 5:
                self.delete(is_checked=False)
                self.create()
                self.setup()
                self.run(train)
            time.sleep(period_sec)

    def log(self, num_lines: int = 40) -> None:
        """Shows the end of the log of worker 0."""
        self._ssh(f"bash {WORKER} log {num_lines}", worker="0")

    def stop(self) -> None:
        """Asks the job to save and to end."""
        self._ssh(f"bash {WORKER} stop")

    def delete(self, is_checked: bool = True) -> None:
        """Gives the machine back, so that it costs nothing more."""
        if self.is_queued:
            command = ["queued-resources", "delete", self.name, "--force", "--quiet"]
        else:
            command = ["tpu-vm", "delete", self.name, "--quiet"]
        self._gcloud(*command, is_checked=is_checked)

    def _wait_until_ready(self) -> None:
        while not self.is_dry:
            state = self._state()
            if state in READY:
                return
            if state in GONE:
                sys.exit(f"error: {self.name} is {state}; see README.md, 'Troubleshooting'")
            print(f"{self.name} is {state}; waiting", flush=True)
            time.sleep(30)
        self._state()

    def _state(self) -> str:
        kind = "queued-resources" if self.is_queued else "tpu-vm"
        field = "value(state.state)" if self.is_queued else "value(state)"
        answer = self._gcloud(
            kind, "describe", self.name, f"--format={field}", is_captured=True, is_checked=False
        )
        return answer.strip() or "MISSING"

    def _ssh(self, command: str, worker: str = "all", is_captured: bool = False) -> str:
        # A status that cannot be asked for is an answer too; a failed set-up is an error.
        return self._gcloud(
            "tpu-vm",
            "ssh",
            self.name,
            f"--worker={worker}",
            f"--command={command}",
            is_captured=is_captured,
            is_checked=not is_captured,
        )

    def _gcloud(self, *words: str, is_captured: bool = False, is_checked: bool = True) -> str:
        where = [f"--zone={self.zone}"] + ([f"--project={self.project}"] if self.project else [])
        command = ["gcloud", "compute", "tpus", *words, *where]
        return self._run(command, is_captured=is_captured, is_checked=is_checked)

    def _run(self, command: list[str], is_captured: bool = False, is_checked: bool = True) -> str:
        if self.is_dry:
            print(shlex.join(command))
            return ""
        pipe = subprocess.PIPE if is_captured else None
        try:
            done = subprocess.run(command, stdout=pipe, text=True, check=False)
        except FileNotFoundError:
            sys.exit(f"error: {command[0]} is not installed; see README.md")
        if is_checked and done.returncode:
            sys.exit(f"error: code {done.returncode} from: {shlex.join(command)}")
        return done.stdout or ""


def main(argv: list[str]) -> int:
    """Runs one command.

    Args:
        argv: words of the command line, behind the program's name.

    Returns:
        The exit code: 0, or that of the job.

    Raises:
        SystemExit: wrong arguments, no `gcloud`, or a command of it failed.
    """
    own, train = argv, []
    if "--" in argv:
        cut = argv.index("--")
        own, train = argv[:cut], argv[cut + 1 :]
    args = _parser().parse_args(own)
    pod = Pod(
        name=args.name,
        zone=args.zone,
        project=args.project,
        type=args.type,
        runtime=args.runtime,
        is_spot=args.spot,
        is_queued=args.queued,
        bucket=args.bucket,
        is_dry=args.dry_run,
    )
    if args.command in ("up", "run", "watch") and not train:
        sys.exit(
            "error: give the training flags after --, for example -- --config=configs/joint.py"
        )
    if args.command == "up":
        pod.create()
        pod.setup()
        pod.run(train)
    if args.command in ("up", "watch"):
        return pod.watch(train, args.period)
    if args.command == "run":
        pod.run(train)
    else:
        getattr(pod, args.command)()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = ("up", "create", "setup", "run", "watch", "log", "stop", "delete")
    parser.add_argument("command", choices=commands)
    parser.add_argument("--name", required=True, help="name of the TPU")
    parser.add_argument("--zone", required=True, help="for example us-west4-a")
    parser.add_argument("--project", default="", help="default: the one gcloud is set to")
    parser.add_argument("--type", default="v5litepod-16", help="accelerator type")
    parser.add_argument("--runtime", default="", help="image; default: the usual one of the type")
    parser.add_argument("--spot", action="store_true", help="cheaper, can be taken away")
    parser.add_argument("--queued", action="store_true", help="use queued resources")
    parser.add_argument("--bucket", default="", help="bucket mounted at ~/runs on every worker")
    parser.add_argument("--period", type=float, default=60.0, help="seconds between two looks")
    parser.add_argument("--dry-run", action="store_true", help="print commands, run none")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
