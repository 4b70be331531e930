// Keys; "?" shows them (index.html).
import { hand } from "./hand.js";
import { removeSelected } from "./kept.js";
import { pickLevel } from "./levels.js";
import { $, canvas, view } from "./page.js";
import { draw } from "./picture.js";
import { state } from "./state.js";
import { actions, press, setMode } from "./tools.js";

const MODES = { a: "add", r: "remove", b: "box", p: "brush", e: "eraser" };
const PRESSED = { z: "undo", k: "keep", escape: "drop" };
const STEPS = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] };
const FIELDS = "input:not([type=range]):not([type=checkbox]), select, textarea";

function keyDown(event) {
  const isField = event.target.matches?.(FIELDS), key = event.key.toLowerCase();
  if (event.ctrlKey && key === "z" && !isField && state.image) { event.preventDefault(); press("undo"); return; }
  if (isField || event.ctrlKey || event.metaKey || event.altKey || $("#keys").open) return;
  if (key === "?") { $("#keys").showModal(); return; }
  if (!state.image) return;
  const step = STEPS[key];
  if (key >= "1" && key <= "9") pickLevel(Number(key));
  else if (key in MODES) setMode(MODES[key]);
  else if (key in PRESSED) press(PRESSED[key]);
  else if (key === "delete") removeSelected();
  else if (key === "+" || key === "=") actions.zoomIn();
  else if (key === "-") actions.zoomOut();
  else if (key === "0") actions.fit();
  else if (key === "[" || key === "]") resizeBrush(key === "]" ? 3 : -3);
  else if (key === " " && event.target === canvas) { hand.isSpace = true; event.preventDefault(); }
  else if (step && view.zoom > 1 && !event.target.matches("input")) { event.preventDefault(); pan(...step); }
}

function resizeBrush(by) {
  const size = $("#brush");
  size.value = Number(size.value) + by; size.oninput();
}

// An eighth of what is visible.
function pan(dx, dy) { view.pan(dx * view.width / view.zoom / 8, dy * view.height / view.zoom / 8); draw(); }

export function listenToKeys() {
  document.addEventListener("keydown", keyDown);
  document.addEventListener("keyup", (event) => { if (event.key === " ") hand.isSpace = false; });
}
