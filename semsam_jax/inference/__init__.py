"""From a photo and prompts to named masks."""
