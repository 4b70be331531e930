"""The index of examples, scanned once."""

from data_pipelines.index.build import Index, IndexReport, Source, build_index

__all__ = ["Index", "IndexReport", "Source", "build_index"]
