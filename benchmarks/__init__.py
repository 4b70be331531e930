"""Benchmarks: python -m benchmarks.NAME prints what it measured."""
