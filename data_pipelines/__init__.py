"""Input pipeline: from native dataset files to padded batches, without JAX."""
