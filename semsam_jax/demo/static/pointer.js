// Pointers on the image: clicks, boxes, moving, pinching, the wheel.
import { addPoint, setBox } from "./clicks.js";
import { hand, isPainting } from "./hand.js";
import { canvas, say, view } from "./page.js";
import { endPaint, paintTo, startPaint } from "./paint.js";
import { draw } from "./picture.js";
import { planPreview, stopPreview } from "./preview.js";
import { state } from "./state.js";
import { afterZoom } from "./tools.js";
import { climb, keepAt, pick, pickAt } from "./whole.js";

const FAR = 8;  // pixels of the page that a hand moves without meaning it
const pointers = new Map();  // those that are down: [x, y] on the page

const isClicking = () => state.mode === "add" || state.mode === "remove";

function down(event) {
  if (!state.image) return;
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
  stopPreview();
  if (pointers.size === 2) { hand.drag = null; hand.painted = null; canvas.setPointerCapture(event.pointerId); draw(); return; }
  if (!event.isPrimary || event.button === 2) return;
  const [x, y] = view.place(event);
  const isPan = event.button === 1 || hand.isSpace || (event.pointerType === "touch" && view.zoom > 1 && isClicking());
  if (event.button === 1) event.preventDefault();
  hand.drag = { x0: x, y0: y, x1: x, y1: y, startX: event.clientX, startY: event.clientY, isBox: false, isFar: false, isPan, isTap: event.button === 0 && !hand.isSpace };
  if (event.pointerType === "mouse" || state.mode === "box" || isPainting() || isPan) canvas.setPointerCapture(event.pointerId);
  if (isPainting() && !isPan) startPaint(x, y);
}

function move(event) {
  if (!state.image) return;
  const [x, y] = view.place(event), last = pointers.get(event.pointerId), { drag } = hand;
  hand.cursor = [x, y];
  if (last) pointers.set(event.pointerId, [event.clientX, event.clientY]);
  if (last && pointers.size === 2) { pinch(event.pointerId, last); return; }
  if (hand.painted) { paintTo(x, y); return; }
  if (!drag) { hover(event, x, y); return; }
  drag.isFar ||= Math.hypot(event.clientX - drag.startX, event.clientY - drag.startY) > FAR;
  if (drag.isPan) { if (drag.isFar && last) { view.panBy(event.clientX - last[0], event.clientY - last[1]); draw(); } return; }
  if (!drag.isFar || isPainting() || !(state.mode === "box" || event.pointerType === "mouse")) return;
  Object.assign(drag, { x1: x, y1: y, isBox: true });
  draw();
}

function hover(event, x, y) {
  if (isPainting()) draw();
  else if (event.pointerType !== "mouse") return;
  else if (state.answer?.kind === "whole") pick(pickAt(x, y));
  else planPreview(x, y);
}

function up(event) {
  pointers.delete(event.pointerId);
  const done = hand.drag;
  hand.drag = null;
  if (hand.painted) { endPaint(); return; }
  if (!done || (done.isPan && (done.isFar || !done.isTap))) return;
  const [x0, x1] = [done.x0, done.x1].sort((a, b) => a - b), [y0, y1] = [done.y0, done.y1].sort((a, b) => a - b);
  if (done.isBox && x1 - x0 > 2 && y1 - y0 > 2) setBox([x0, y0, x1, y1]);
  else if (state.answer?.kind === "whole") keepAt(done.x0, done.y0);
  else if (state.mode === "box") { draw(); say("Drag a box around the object."); }
  else if (!isPainting()) addPoint(done.x0, done.y0, state.mode === "add" ? 1 : 0);
}

function cancel(event) { pointers.delete(event.pointerId); hand.drag = null; hand.painted = null; draw(); }

function leave() {
  stopPreview();
  hand.cursor = null;
  if (!hand.drag) { state.preview = null; pick(-1); draw(); }
}

function menu(event) {
  event.preventDefault();
  if (state.image && !isPainting()) addPoint(...view.place(event), 0);
}

function wheel(event) {
  if (!state.image) return;
  event.preventDefault();
  if (state.answer?.isTree && !event.ctrlKey) { climb(event); return; }
  view.zoomAt(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0018)), ...view.place(event));
  afterZoom();
}

function pinch(id, last) {
  const [a, b] = [...pointers.values()], other = [...pointers.entries()].find(([key]) => key !== id)[1], here = pointers.get(id);
  const before = Math.hypot(last[0] - other[0], last[1] - other[1]), after = Math.hypot(here[0] - other[0], here[1] - other[1]);
  view.zoomAt(after / Math.max(1, before), ...view.place({ clientX: (a[0] + b[0]) / 2, clientY: (a[1] + b[1]) / 2 }));
  view.panBy((here[0] - last[0]) / 2, (here[1] - last[1]) / 2);
  afterZoom();
}

export function listenToPointers() {
  const listeners = { pointerdown: down, pointermove: move, pointerup: up, pointercancel: cancel, pointerleave: leave, contextmenu: menu };
  for (const [name, listener] of Object.entries(listeners)) canvas.addEventListener(name, listener);
  canvas.addEventListener("wheel", wheel, { passive: false });
}
