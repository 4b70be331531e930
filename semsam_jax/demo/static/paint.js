// Brush and eraser: they change kept masks.
import { brushSize, hand } from "./hand.js";
import { keep, store } from "./kept.js";
import { cutBits, paintLine, wholeMap } from "./masks.js";
import { guarded, say } from "./page.js";
import { show } from "./panel.js";
import { draw } from "./picture.js";
import { changeKept, isEmpty, remember, shown, state } from "./state.js";

export const NOTHING_TO_PAINT = "Keep a mask first: brush and eraser change kept masks.";

export function startPaint(x, y) {
  if (shown() && !isEmpty(shown().mask)) keep();
  const one = state.kept.find((k) => k.id === state.selected) ?? state.kept.at(-1);
  if (!one) { say(NOTHING_TO_PAINT, true); return; }
  state.selected = one.id;
  const map = wholeMap(one.bits);
  let cut = null;
  hand.painted = { id: one.id, map, x, y, bits: () => (cut ??= cutBits(map, (v) => v)), touch: () => { cut = null; } };
  paintTo(x, y);
}

export function paintTo(x, y) {
  const { painted } = hand;
  paintLine(painted.map, painted.x, painted.y, x, y, brushSize(), state.mode === "brush" ? 1 : 0);
  Object.assign(painted, { x, y }); painted.touch(); draw();
}

export const endPaint = () => guarded(async () => {
  const { id, bits: cut } = hand.painted, bits = cut();
  hand.painted = null;
  remember(); changeKept(id, { bits, number: null });
  show(); say("Painted.");
  await store(state.kept.find((one) => one.id === id));
});
