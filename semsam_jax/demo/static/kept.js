// What is done with masks that the visitor keeps. They are never changed in place (state.js).
import { hand } from "./hand.js";
import { ask } from "./image.js";
import { bitsUrl, cutBits, loadValues } from "./masks.js";
import { request } from "./net.js";
import { say } from "./page.js";
import { show } from "./panel.js";
import { draw } from "./picture.js";
import { dropPrompt, keepMask, keptAs, newTurn, remember, shown, state } from "./state.js";

export const FORGOTTEN = "The server has forgotten these masks. Segment everything again.";
const KNOWN = "Kept already.";

// Keeps the mask of the click.
export function keep() {
  const { mask, bits } = shown(), isKnown = keptAs(bits);
  remember(); keepMask(mask, bits, state.answer.key);
  newTurn(); dropPrompt(); show(); say(`${isKnown ? KNOWN : `${state.kept.length} kept.`} Click on the next object.`);
}

// Keeps masks of the whole image, which the server has.
export async function keepAnswer(indices) {
  const answer = state.answer, rows = indices.map((i) => answer.masks[i]), kept = [];
  for (let start = 0; start < rows.length; start += 32) {
    const part = rows.slice(start, start + 32);
    for (const [i, bits] of (await fetchBits(answer.key, part)).entries()) kept.push([part[i], bits]);
  }
  if (answer !== state.answer) return;
  const isKnown = kept.every(([, bits]) => keptAs(bits));
  if (!isKnown) remember();
  for (const [mask, bits] of kept) keepMask(mask, bits, answer.key);
  show(); say(isKnown ? KNOWN : `${state.kept.length} kept.`);
}

export function select(id) { state.selected = id; show(); }
export function point(id) { if (hand.pointed !== id) { hand.pointed = id; draw(); } }

export function move(from, by) {
  const to = from + by;
  if (!by || to < 0 || to >= state.kept.length) return;
  remember();
  const kept = [...state.kept], [one] = kept.splice(from, 1);
  kept.splice(to, 0, one); state.kept = kept; show();
}

export function remove(id) {
  remember();
  state.kept = state.kept.filter((one) => one.id !== id); hand.pointed = null;
  show(); say("Deleted. Undo brings it back.");
}

export function removeSelected() { if (state.kept.some((one) => one.id === state.selected)) remove(state.selected); }

export function clearAll() {
  remember();
  Object.assign(state, { kept: [], selected: null });
  show(); say("All kept masks removed. Undo brings them back.");
}

// Pixels of masks that only the server has; their numbers mean nothing under another key.
export async function fetchBits(key, masks) {
  try {
    const found = await (await request("masks", { image: key, masks: masks.map((mask) => mask.number) })).json();
    return await Promise.all(found.masks.map(async (one) => cutBits(await loadValues(one.picture), (v) => v > 127)));
  } catch (error) {
    throw error.status === 410 ? new Error(FORGOTTEN) : error;
  }
}

// The server learns a mask that was painted, or that it has forgotten; returns its number and key.
export async function store(one, image = state.image) {
  const found = await ask("edit", { picture: bitsUrl(one.bits), level: one.level ?? 0, score: one.score }, { image });
  const { number, key, place, area } = found, now = state.kept.find((k) => k.id === one.id);
  if (now && now.bits === one.bits) { Object.assign(now, { number, key, place, area }); draw(); }
  return { number, key };
}
