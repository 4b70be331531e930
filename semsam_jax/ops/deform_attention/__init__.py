"""Multi-scale deformable attention: one API, one reference, fast versions."""
