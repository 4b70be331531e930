"""Semantic-SAM in JAX: segment and recognise anything at any granularity."""
