// The mask under a resting pointer, before any click.
import { hand } from "./hand.js";
import { cutBits, hasBit, loadValues } from "./masks.js";
import { isBusy, request } from "./net.js";
import { $ } from "./page.js";
import { draw } from "./picture.js";
import { bestLevel, isTurn, lastTurn, state } from "./state.js";

const REST_MS = 140;
let timer = 0;

export function stopPreview() { clearTimeout(timer); }

export function planPreview(x, y) {
  stopPreview();
  const isFree = $("#preview").checked && state.mode === "add" && !state.answer && !state.points.length && !state.box && !hand.drag;
  if (!isFree || (state.preview && hasBit(state.preview.bits, x, y))) return;
  if (state.preview) { state.preview = null; draw(); }
  timer = setTimeout(async () => {
    if (isBusy()) return;
    const turn = lastTurn();
    try {
      const body = { image: state.image.key, points: [[x, y, 1]], box: null, names: "", preview: true };
      const found = await (await request("click", body, { isQuiet: true })).json();
      if (!isTurn(turn) || state.answer || state.points.length) return;
      const map = await loadValues(found.picture), level = bestLevel(found.masks);
      state.preview = { bits: cutBits(map, (v) => v >> (level - 1) & 1), level };
      draw();
    } catch { /* a preview that fails is no preview */ }
  }, REST_MS);
}
