"""Structs, errors and formats that every floor uses."""
