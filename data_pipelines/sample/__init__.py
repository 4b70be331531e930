"""The embedded sample data."""
