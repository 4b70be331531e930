// Draws the image with everything on it: masks, names, marks.
import { colourOf, drawBox, drawMark, drawName, drawRing, levelColour } from "./draw.js";
import { brushSize, hand, isPainting } from "./hand.js";
import { fillCanvas, mapCanvas } from "./masks.js";
import { $, view } from "./page.js";
import { foundColour, label, shown, state, sureName } from "./state.js";
import { pathUp } from "./tree.js";

export function draw() {
  if (!state.image) return;
  const context = view.begin(), ratio = window.devicePixelRatio || 1, size = 8 * ratio;
  const chips = [];  // [mask, colour, text]: names to write
  view.put(context, state.image.element);
  drawKept(context, chips);
  if (state.answer?.kind === "click") drawClick(context, chips);
  else if (state.answer) drawWhole(context, chips);
  else if (state.preview) putMask(context, state.preview.bits, levelColour(state.preview.level), 0.22);
  drawNames(context, chips, 12.5 * ratio);
  const { drag, cursor } = hand;
  const boxes = [state.box, drag?.isBox ? [drag.x0, drag.y0, drag.x1, drag.y1] : null];
  for (const b of boxes) if (b) drawBox(context, ...view.toCanvas(b[0], b[1]), ...view.toCanvas(b[2], b[3]), size);
  for (const [x, y, good] of state.points) drawMark(context, ...view.toCanvas(x, y), good === 1, size);
  if (isPainting() && cursor) drawRing(context, ...view.toCanvas(...cursor), brushSize() * view.scale);
  $("#zoom").textContent = `${Math.round(100 * view.zoom)} %`;
}

function putMask(context, bits, colour, opacity) {
  if (bits.w) view.put(context, fillCanvas(bits, colour, opacity), bits.x, bits.y, bits.w, bits.h);
}

function drawKept(context, chips) {
  const { painted, pointed } = hand;
  for (const one of [...state.kept].reverse()) {
    const bits = painted?.id === one.id ? painted.bits() : one.bits;
    if (!bits.w) continue;
    const picture = painted?.id === one.id ? fillCanvas(bits, one.colour, 0.5) : (one.canvas ??= fillCanvas(bits, one.colour, 0.42));
    context.globalAlpha = pointed && pointed !== one.id ? 0.3 : 1;
    view.put(context, picture, bits.x, bits.y, bits.w, bits.h);
    context.globalAlpha = 1;
    if (one.name && (!pointed || pointed === one.id)) chips.push([one, one.colour, one.name]);
  }
}

function drawClick(context, chips) {
  const colour = levelColour(state.level), { mask, bits } = shown();
  putMask(context, bits, colour, 0.45);
  if (label(mask)) chips.push([mask, colour, label(mask)]);
}

function drawWhole(context, chips) {
  const { answer, picked } = state;
  // In a tree what lies inside a mask has its colour, so that whole and parts are picked alike.
  const colours = answer.masks.map((_, i) => {
    const path = answer.isTree ? pathUp(answer.masks, i) : [i], isIn = path.includes(picked);
    return [...(isIn ? colourOf(picked) : foundColour(answer, i)), picked < 0 ? 0.5 : isIn ? 0.65 : 0.1];
  });
  view.put(context, mapCanvas(answer.map, (v) => (v ? colours[v - 1] : null)));
  answer.masks.forEach((mask, i) => {
    if (sureName(mask) && (picked < 0 ? !mask.depth : picked === i)) chips.push([mask, colourOf(i), label(mask)]);
  });
}

function drawNames(context, chips, size) {
  const taken = [];
  for (const [mask, colour, text] of chips.sort((a, b) => b[0].area - a[0].area)) {
    if (!mask.place) continue;
    const done = drawName(context, text, ...view.toCanvas(mask.place[0] * view.width, mask.place[1] * view.height), colour, size, taken);
    if (done) taken.push(done);
  }
}
