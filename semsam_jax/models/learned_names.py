"""Embeddings of names that no text source has, learned with the model."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from semsam_jax.core.structs import TextTable
from semsam_jax.models.layers import parameter


class LearnedNames(nn.Module):
    """Rows that stand for names; which name is which row says the checkpoint's meta.

    Attributes:
        count: number of names.
        dim: dimensions of the text space.
    """

    count: int
    dim: int

    @nn.compact
    def __call__(self, table: TextTable, index: Int[Array, " v"]) -> TextTable:
        """Puts unit rows in their places of a table.

        Args:
            table: of the whole vocabulary; what it holds in those places does not matter.
            index: for each name, objects first, its row here, or -1 for the table's own.
        """
        init = nn.initializers.normal(self.dim**-0.5)
        rows = unit_rows(parameter(self, "rows", init, (self.count, self.dim)))
        whole = jnp.concatenate([table.objects, table.parts])
        whole = jnp.where((index >= 0)[:, None], rows[jnp.maximum(index, 0)], whole)
        num_objects = table.objects.shape[0]
        return TextTable(objects=whole[:num_objects], parts=whole[num_objects:])


def unit_rows(rows: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Rows of length 1, float32; a row of zeros stays one."""
    rows = jnp.asarray(rows, jnp.float32)
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-6)
