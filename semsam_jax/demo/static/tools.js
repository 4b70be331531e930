// The buttons above the image, which keys press, too.
import { askAgain, drop } from "./clicks.js";
import { isPainting } from "./hand.js";
import { close } from "./image.js";
import { keep } from "./kept.js";
import { describe, stopSlider } from "./levels.js";
import { $, canvas, say, view } from "./page.js";
import { NOTHING_TO_PAINT } from "./paint.js";
import { show } from "./panel.js";
import { draw } from "./picture.js";
import { CLICK, isAnswered, newTurn, state, undo } from "./state.js";

export const actions = {
  undo() {
    newTurn(); stopSlider(); undo();
    if (!isAnswered()) { askAgain(); return; }
    show(); say(state.answer?.kind === "click" ? describe() : CLICK);
  },
  drop, keep, close,
  fit() { view.fit(); afterZoom(); },
  zoomIn() { view.zoomAt(1.5); afterZoom(); },
  zoomOut() { view.zoomAt(1 / 1.5); afterZoom(); },
};

export function press(name) { if (!$(`[data-do=${name}]`).disabled) actions[name](); }

export function afterZoom() { setTouch(); draw(); }

// A finger scrolls the page, unless it moves the zoomed image, draws a box or paints.
function setTouch() { canvas.style.touchAction = view.zoom > 1 || !["add", "remove"].includes(state.mode) ? "none" : "pan-y"; }

export function setMode(mode) {
  Object.assign(state, { mode, preview: null });
  document.querySelectorAll("[data-mode]").forEach((b) => b.setAttribute("aria-checked", String(b.dataset.mode === mode)));
  canvas.style.cursor = isPainting() ? "none" : "crosshair";
  setTouch(); draw();
  if (isPainting() && !state.kept.length && state.answer?.kind !== "click") say(NOTHING_TO_PAINT);
}

export function listenToTools() {
  document.querySelectorAll("[data-do]").forEach((button) => { button.onclick = () => actions[button.dataset.do](); });
  document.querySelectorAll("[data-mode]").forEach((button) => { button.onclick = () => setMode(button.dataset.mode); });
}
