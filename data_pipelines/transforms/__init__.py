"""Transforms from `RawExample` to fixed-shape rows."""
