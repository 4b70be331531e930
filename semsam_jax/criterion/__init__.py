"""Losses of both streams."""
