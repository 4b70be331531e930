"""Builders of sharded ArrayRecord files."""
