"""Cycles of a program as the compiler writes it, cut down to what is read."""

from semsam_jax.parallel import cycles

STEP = "jit(_forward)/jvp(SemanticSAM.encode_image)"
KERNEL = (
    'custom_call_target="tpu_custom_call", operand_layout_constraints={s32[8]{0}, '
    "f32[2,4,32,512]{3,2,1,0}, f32[2,4,16,512]{3,2,1,0}, bf16[2,4,32,680]{3,2,1,0}}, "
)
TEXT = f"""HloModule jit__forward
%body.1 (x: f32[4]) -> f32[4] {{
  %a = f32[4]{{0}} add(%x, %x), metadata={{op_name="{STEP}/pixel_decoder/encoder/while/add"}}, \
backend_config={{"estimated_cycles":"100"}}
  %deform_attention_forward.3 = bf16[2,4,32,512]{{3,2,1,0}} custom-call(%r, %p, %w, %t), {KERNEL}\
metadata={{op_name="{STEP}/pixel_decoder/encoder/while/pallas_call"}}
}}
%other (x: f32[4]) -> f32[4] {{
  %c = f32[4]{{0}} add(%x, %x), metadata={{op_name="jit(_forward)/losses/add"}}, \
backend_config={{"estimated_cycles":"5"}}
}}
%layers (x: (s32[], f32[4])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant(3)
  %n = s32[]{{:T(128)}} get-tuple-element(%x), index=0
  ROOT %lt.6 = pred[]{{:T(512)}} compare(%n, %limit), direction=LT
}}
ENTRY %main.2 (x: f32[4]) -> f32[4] {{
  %f = f32[4]{{0}} fusion(%x), metadata={{op_name="{STEP}/backbone/stage0/dot"}}, \
backend_config={{"estimated_cycles":"1000"}}
  %w.1 = f32[4]{{0}} while(%f), condition=%cond.1, body=%body.1, \
backend_config={{"known_trip_count":{{"n":"6"}}}}
  %w.2 = f32[4]{{0}} while(%f), condition=%cond.1, body=%other
  %w.3 = f32[4]{{0}} while(%f), condition=%layers, body=%other
  ROOT %d = f32[4]{{0}} copy(%w.1), backend_config={{"estimated_cycles":"7"}}
}}
"""


def test_loops_count_as_often_as_they_run_and_parts_are_told_apart():
    found = cycles.estimate(TEXT)
    assert found.parts == {"backbone": 1000, "encoder": 600, "losses": 5 + 3 * 5, "other": 7}
    assert found.unknown_loops == 1


def test_kernels_are_named_with_what_they_take():
    ((part, kernel),) = cycles.estimate(TEXT).kernels
    assert (kernel.name, part, kernel.times) == ("deform_attention_forward.3", "encoder", 6)
    assert kernel.operands == ((8,), (2, 4, 32, 512), (2, 4, 16, 512), (2, 4, 32, 680))


def test_instructions_are_counted_once_each():
    assert cycles.count_instructions(TEXT) == {"encoder": 2, "losses": 1, "backbone": 1}
