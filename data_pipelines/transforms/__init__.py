"""From RawExample to a fixed-shape row."""
