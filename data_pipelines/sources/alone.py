"""The name that `single_dataset` had in release 0.1; it goes with the next release."""

from data_pipelines.sources.single_dataset import open_single_dataset as open_alone

__all__ = ["open_alone"]
