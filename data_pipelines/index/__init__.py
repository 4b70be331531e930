"""The index of examples, scanned once."""

from data_pipelines.index.build import Index, Views, build_index, open_index
from data_pipelines.index.scan import ExampleSource, IndexReport

__all__ = ["ExampleSource", "Index", "IndexReport", "Views", "build_index", "open_index"]
