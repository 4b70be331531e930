"""From an image and prompts to named masks."""
