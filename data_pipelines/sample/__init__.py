"""The embedded sample: real images in all seven native layouts, about 7 MB, inside the package.

It lets training, evaluation and the demo run without a download. The `README.md` next to this file
says which labels are human, machine-made or stand-ins; `data/ATTRIBUTION.csv` has the licence of
every image.
"""

import pathlib

from data_pipelines.schema import DATASETS

_DATA = pathlib.Path(__file__).parent / "data"


def roots() -> dict[str, pathlib.Path]:
    """Returns dataset -> folder in its native layout, ready for `sources.open_source`."""
    return {dataset: _DATA / dataset for dataset in DATASETS}
