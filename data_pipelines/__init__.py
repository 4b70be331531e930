"""From native dataset files to padded batches; imports no jax."""
