"""Class names as the model takes them: tokens, templates, stored embeddings."""
