"""Conversion of weights from and to the original, without PyTorch."""
