"""Class names as model input: tokens, templates, stored embeddings."""
