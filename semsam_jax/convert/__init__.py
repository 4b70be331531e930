"""Weights of the original in and out, without PyTorch."""
