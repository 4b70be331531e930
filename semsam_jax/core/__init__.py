"""Structs, errors and formats that every layer uses."""
