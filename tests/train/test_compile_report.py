"""What is said of a slice on which a step does not fit."""

from semsam_jax.parallel.arithmetic import Arithmetic
from semsam_jax.parallel.program import MemoryUse
from semsam_jax.train import cost_report
from semsam_jax.train.compile_only import Compiled, CompileReport

GIB = 2**30


def _report(*programs: Compiled) -> CompileReport:
    return CompileReport(
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
    forward = Compiled("forward", 1, MemoryUse(GIB // 2, 5 * GIB, 2 * GIB), {"all-gather": 3})
    backward = Compiled("backward", 1, MemoryUse(4 * GIB, 0, 7 * GIB), {})
    report = _report(forward, backward)
    assert report.peak == GIB + (4 + 7 - 1) * GIB
    assert "| 11.0 of 16 | forward: 3 all-gather; backward: no collective |" in report.row()
    # Of micro-batches, the residuals of the next one are there as well.
    two = [Compiled(p.name, 2, p.memory, p.collectives) for p in (forward, backward)]
    assert _report(*two).peak == report.peak + 5 * GIB


def test_an_estimated_step_says_what_it_assumes():
    """Two images and heads of 512 queries over a pyramid of 16x16 and 4x4 pixels."""
    kernel = (
        '  %deform_attention_forward.1 = bf16[2,2,32,512] custom-call(%r), "tpu_custom_call", '
        "operand_layout_constraints={s32[16]{0}, f32[2,2,16,512]{3,2,1,0}, "
        "f32[2,2,8,512]{3,2,1,0}, bf16[2,2,32,512]{3,2,1,0}}, "
        'metadata={op_name="jit(_forward)/encoder/pallas_call"}\n'
    )
    name = 'metadata={op_name="jit(_forward)/backbone/add"}'
    add = f'  %a = f32[4] add(%x), {name}, backend_config={{"estimated_cycles":"1500000"}}\n'
    text = "ENTRY %main (x: f32[4]) -> f32[4] {\n" + kernel + add + "}\n"
    work = Arithmetic({"bfloat16": 1e12}, gathered=6e5)
    shapes = ((16, 16), (4, 4))
    cost = cost_report.estimate([(text, 3)], work, 2, "TPU v5 lite", shapes)
    # Both levels are padded to one step of 256 pixels.
    tiles, both = 2 * 2 * 2, 2 * 215
    assert cost.kernels["anywhere"] == 3 * tiles * (533 + both)
    assert cost.parts == {"backbone": 4.5e6, "encoder": 3 * tiles * (533 + 0.36 * both)}
    assert cost.rows == 5 * 6e5 / 2
    assert cost.seconds("anywhere") == (4.5e6 + cost.kernels["anywhere"] + 1.5e6) / 1.5e9
    table = "\n".join(cost.lines())
    assert "Not measured. Assumed: 1.50 GHz" in table
    assert "| backbone | 3.0 |" in table
    assert cost_report.estimate([(text, 3)], work, 2, "TPU v9", shapes) is None
