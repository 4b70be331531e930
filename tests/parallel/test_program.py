"""What a compiled program says about itself."""

import jax

from semsam_jax.parallel.program import count_collectives

TEXT = """
  %a.1 = f32[8,4]{1,0} all-gather(%x), channel_id=7, dimensions={0}
  %a.2 = f32[8,4]{1,0} all-gather(%y), channel_id=7, dimensions={0}
  %a.3 = f32[8,4]{1,0} all-gather(%z), channel_id=8, dimensions={0}
  %r.1 = (f32[4]{0}, f32[2]{0}) all-reduce-start(%u, %v), channel_id=9
  %p.1 = s32[2]{0} collective-permute(%w)
  %p.2 = s32[2]{0} collective-permute(%w)
"""


class Written(jax.stages.Compiled):
    """A program of which only the text is known."""

    def __init__(self):
        pass

    def as_text(self):
        return TEXT


def test_a_collective_that_is_spread_over_arithmetic_counts_once():
    want = {"all-gather": 2, "all-reduce": 1, "collective-permute": 2}
    assert count_collectives(Written()) == want
