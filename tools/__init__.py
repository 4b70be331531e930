"""Programs for maintainers; nothing of them is in the wheel."""
