"""What is said of a slice on which a step does not fit."""

from semsam_jax.parallel.program import Memory
from semsam_jax.train.compile_only import Compiled, Report

GIB = 2**30


def _report(*programs: Compiled) -> Report:
    return Report(
        preset="tiny",
        topology="v5e:2x2",
        mesh={"data": 1, "fsdp": 4},
        rows_per_chip=(1, 1),
        programs=programs,
        resident=GIB,
        hbm=16 * GIB,
        flops=2e12,
        repeated_flops=5e11,
        seconds=1.0,
    )


def test_a_program_that_does_not_fit_has_no_figures():
    forward = Compiled("forward", 1, None, {}, "RESOURCE_EXHAUSTED")
    report = _report(forward, Compiled("backward", 1, None, {}, "not compiled"))
    assert report.peak is None
    assert report.row() == (
        "| tiny | v5e:2x2 (4) | 1 x 4 | 1 + 1 | does not fit of 16 | forward: not known; "
        "backward: not known | 2 (+25 %) |"
    )


def test_the_fullest_moment_counts_what_lies_beside_a_program():
    forward = Compiled("forward", 1, Memory(GIB // 2, 5 * GIB, 2 * GIB), {"all-gather": 3})
    backward = Compiled("backward", 1, Memory(4 * GIB, 0, 7 * GIB), {})
    report = _report(forward, backward)
    assert report.peak == GIB + (4 + 7 - 1) * GIB
    assert "| 11.0 of 16 | forward: 3 all-gather; backward: no collective |" in report.row()
    # Of micro-batches, the residuals of the next one are there as well.
    two = [Compiled(p.name, 2, p.memory, p.collectives) for p in (forward, backward)]
    assert _report(*two).peak == report.peak + 5 * GIB
