"""The embedded sample: real images in all seven native layouts, about 7 MB, inside the package.

It lets training, evaluation and the demo run without a download. The `README.md` next to this file
says which labels are human, machine-made or stand-ins; `data/ATTRIBUTION.csv` has the licence of
every image.
"""

import pathlib
from collections.abc import Sequence

from data_pipelines.schema import DATASETS
from semsam_jax.core.errors import DataError

_DATA = pathlib.Path(__file__).parent / "data"


def roots() -> dict[str, pathlib.Path]:
    """Returns dataset -> folder in its native layout, ready for `sources.open_source`."""
    return {dataset: _DATA / dataset for dataset in DATASETS}


def folders(names: Sequence[str]) -> dict[str, pathlib.Path]:
    """Those of `roots` that a run without another folder reads.

    Raises:
        DataError: some are not in the sample; all of them are listed.
    """
    found = roots()
    if others := [name for name in names if name not in found]:
        raise DataError(
            f"{', '.join(others)}: not in the embedded sample, which has {', '.join(found)}; give "
            f"--config.data.custom=FOLDER (your own images) or --data.root=DIR, or leave it out "
            f"by shares of 0 and another --config.eval_dataset."
        )
    return {name: path for name, path in found.items() if name in names}
