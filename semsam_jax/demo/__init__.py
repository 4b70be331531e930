"""The web demo: `python -m semsam_jax demo`."""
