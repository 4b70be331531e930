"""Costs on the device, assignments on the host."""
