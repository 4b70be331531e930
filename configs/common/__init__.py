"""Pieces that several configurations share."""
