"""One of two processes of `test_two_processes`: address, index and output folder as arguments."""

import json
import sys
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))

from semsam_jax.evals import eval_loop  # noqa: E402
from semsam_jax.evals.generic import evaluate_generic  # noqa: E402
from semsam_jax.evals.one_click import evaluate_one_click  # noqa: E402
from tests.evals.fakes import ReadingGeneric, ReadingModel  # noqa: E402
from tests.evals.test_generic import CLASSES, TEXT  # noqa: E402
from tests.evals.test_two_processes import CLICKED, LABELLED  # noqa: E402

eval_loop._GATHER_BYTES = 1000  # several rounds


def run(folder: Path | None) -> eval_loop.EvalLoop:
    return eval_loop.EvalLoop(folder=folder, devices=tuple(jax.local_devices()))


def main() -> None:
    out = Path(sys.argv[3])
    own = run(out / "progress")
    clicks = evaluate_one_click(ReadingModel(), {}, CLICKED, eval_loop=own)
    generic = evaluate_generic(
        ReadingGeneric(), {}, TEXT, LABELLED, CLASSES, eval_loop=run(out / "progress")
    )
    content = {
        "clicks": clicks.scalars(),
        "rows": clicks.table.iou.tolist(),
        "generic": generic.scalars(),
    }
    (out / f"result-{jax.process_index()}.json").write_text(json.dumps(content))
    print(f"process {jax.process_index()} ok")


main()
