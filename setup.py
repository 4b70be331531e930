"""Lets older tools find the project; everything about it stands in pyproject.toml."""

from setuptools import setup

setup()
