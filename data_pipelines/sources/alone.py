"""Old name of `single_dataset` (release 0.1); will be removed in the next release."""

from data_pipelines.sources.single_dataset import open_single_dataset as open_alone

__all__ = ["open_alone"]
