"""Translations between semsam_jax and annotation tools."""
