"""The index of examples, scanned once."""
