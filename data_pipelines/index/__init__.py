"""The index of examples, scanned once."""

from data_pipelines.index.build import Index, build_index, open_index
from data_pipelines.index.scan import IndexReport, Source

__all__ = ["Index", "IndexReport", "Source", "build_index", "open_index"]
