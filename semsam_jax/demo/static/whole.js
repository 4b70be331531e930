// Masks of the whole image: asked for, picked with the pointer, kept.
import { ask } from "./image.js";
import { keepAnswer } from "./kept.js";
import { loadValues } from "./masks.js";
import { $, guarded, say, seconds, view } from "./page.js";
import { show } from "./panel.js";
import { draw } from "./picture.js";
import { dropPrompt, isTurn, label, newTurn, remember, state } from "./state.js";
import { atDepth, turnedDepth } from "./tree.js";

let answers = 0;

export const findEverything = () => everything({}, "masks");
export const findTree = () => everything({ tree: true }, "masks in a tree");
export const findPanoptic = () => find("panoptic", {}, "segments");

function everything(more, what) {
  const one = $("#which").value === "one", between = one && state.between;
  const choice = between ? { level: 0, granularity: between.granularity } : { level: one ? state.level : 0 };
  const quality = state.isScoreMoved ? Number($("#min-score").value) : null;
  return find("everything", { grid: Number($("#grid").value), quality, ...choice, ...more }, what);
}

const find = (path, body, what) => guarded(async () => {
  state.names = $("#names").value.trim();
  if (!state.image) { say("Choose an image first.", true); return; }
  remember(); dropPrompt(); show();
  const turn = newTurn();
  say("Looking at the whole image …");
  const found = await ask(path, { names: state.names, ...body });
  const map = await loadValues(found.picture);
  if (!isTurn(turn)) return;
  state.unknown = found.unknown;
  const isTree = body.tree === true, number = found.masks.length;
  state.answer = number ? { id: `whole ${++answers}`, key: found.key, kind: "whole", masks: found.masks, map, isTree } : null;
  show();
  const how = isTree ? "The wheel goes up to the whole and down to the parts. Click to keep" : "Click on a mask to keep it";
  const origin = found.is_from_masks ? " (named masks of a grid of clicks)" : "";
  const rest = found.left_out ? ` (the best; ${found.left_out} more were found: raise Min. score or lower the grid)` : "";
  say(number ? `${number} ${number === 1 ? what.replace(/s\b/, "") : what}${origin}${rest} in ${seconds(found.decode_sec)}. ${how}; Esc goes back to clicks.`
    : path === "panoptic" ? "The model is not sure enough about any of these names." : "Nothing scores that high. Lower Min. score in the settings.");
});

// ---- picking

function foundAt(x, y) {
  const { values, width, height } = state.answer.map;
  return values[Math.min(height - 1, Math.floor(y)) * width + Math.min(width - 1, Math.floor(x))] - 1;
}

// The mask at a place; in a tree the one at the depth that the wheel has chosen.
export function pickAt(x, y) {
  const i = foundAt(x, y), { masks, isTree } = state.answer;
  return isTree ? atDepth(masks, i, state.depth) : i;
}

export function pick(index) {
  if (index === state.picked) return;
  state.picked = index; draw();
  document.querySelectorAll("#result li").forEach((row, i) => row.classList.toggle("picked", i === index));
}

// The wheel in a tree: up to the whole, down to the parts.
export function climb(event) {
  const here = view.place(event), i = foundAt(...here), { masks } = state.answer;
  state.depth = turnedDepth(masks, i, state.depth, event.deltaY);
  pick(pickAt(...here));
  if (i < 0) return;
  const mask = masks[state.picked], what = label(mask) || (mask.depth ? "A part" : "A whole");
  say(`${what}, granularity ${mask.granularity.toFixed(2)}: step ${mask.depth + 1} of ${masks[i].depth + 1}.`);
}

// ---- keeping

export const keepFound = (i) => guarded(() => keepAnswer([i]));
export const keepAll = () => guarded(async () => {
  await keepAnswer(state.answer.masks.map((_, i) => i));
  dropPrompt(); show();
});
export function keepAt(x, y) {
  const i = pickAt(x, y);
  if (i < 0) say("No mask here. Esc goes back to clicks."); else keepFound(i);
}
