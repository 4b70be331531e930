"""How often a recipe shows each dataset: the table of docs/recipes.md.

    python -m benchmarks.epochs

Arithmetic on the published sizes of the datasets (`data_pipelines.sizes`); no data is needed.
"""

import dataclasses

from configs import eight_gpus, generic_coco, joint, sa1b, sa1b_plus
from data_pipelines.mixture import MixtureTable, build_mixture, epochs
from data_pipelines.recipe import pipeline_config
from data_pipelines.sizes import TRAIN_IMAGES, PublishedSizes
from semsam_jax import config as config_lib

RECIPES = (
    ("sa1b.py:swin_t", sa1b.get_config("swin_t")),
    ("sa1b.py:swin_t,share=0.01", sa1b.get_config("swin_t,share=0.01")),
    ("sa1b.py:swin_t,share=0.03", sa1b.get_config("swin_t,share=0.03")),
    ("sa1b.py:swin_t,share=0.15", sa1b.get_config("swin_t,share=0.15")),
    ("sa1b.py:swin_t,share=0.3", sa1b.get_config("swin_t,share=0.3")),
    ("joint.py:swin_t", joint.get_config("swin_t")),
    ("joint.py:swin_t,rows=512", joint.get_config("swin_t,rows=512")),
    ("sa1b_plus.py:coco", sa1b_plus.get_config("coco")),
    ("sa1b_plus.py:pascal_part", sa1b_plus.get_config("pascal_part")),
    ("generic_coco.py", generic_coco.get_config()),
    ("eight_gpus.py", eight_gpus.get_config()),
)


def tables_of(run: config_lib.RunConfig) -> dict[str, MixtureTable]:
    """The mixture of each stream of a run on the published datasets."""
    config = pipeline_config(dataclasses.asdict(run.data), 0, total_steps=run.steps)
    found = {}
    for name, stream in (("interactive", config.interactive), ("generic", config.generic)):
        if not stream.batch_size:
            continue
        sizes = {
            dataset: PublishedSizes(dataset, config.subsets.get(dataset, 1.0))
            for dataset, share in stream.mixture.datasets.items()
            if share > 0
        }
        rows = run.steps * stream.batch_size
        found[name] = build_mixture(stream.mixture, sizes, total_rows=rows, where=name)
    return found


def main() -> None:
    """Prints the table."""
    print("| recipe | rows per step | steps | " + " | ".join(TRAIN_IMAGES) + " |")
    print("| --- " * (3 + len(TRAIN_IMAGES)) + "|")
    for name, config in RECIPES:
        run = config_lib.build(config)
        seen = epochs(tables_of(run))
        rows = run.data.interactive_batch + run.data.generic_batch
        cells = [f"{seen[d]:.3g}" if d in seen else "" for d in TRAIN_IMAGES]
        print(f"| `{name}` | {rows} | {run.steps:,} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
