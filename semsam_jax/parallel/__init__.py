"""Meshes, shardings and distributed start-up."""
