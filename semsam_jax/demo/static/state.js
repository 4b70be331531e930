// What the page knows, and the changes that Undo takes back.
import { colourOf, levelColour } from "./draw.js";
import { isSame } from "./masks.js";
import { pathUp } from "./tree.js";

export const state = {
  info: null,        // of the server
  image: null,       // {key, width, height, file, name, element, sending (a promise, while it is sent once more)}
  points: [], box: null,
  answer: null,      // {kind: "click", masks, bits, points, box (that it is the answer to)} or {kind: "whole", masks, map}
  level: 1, isChosen: false,
  between: null,     // {granularity, mask, bits}: the mask between two levels that the slider asked for
  kept: [],          // {id, number, key (of the image that knows the number), name, level, score, colour, bits, place}; never changed in place
  selected: null,    // id of a kept mask
  picked: -1,        // index of the mask of a whole answer under the pointer
  depth: Infinity,   // how deep in a tree the pointer picks
  preview: null,     // {bits, level, score}
  mode: "add", names: "", unknown: [],
  isScoreMoved: false,  // until then the thresholds of the model hold
};
export const CLICK = "Click on something.";
const history = [];
let nextId = 1, turn = 0;

// Turns: what comes back from the server for a turn that is over is dropped.
export const newTurn = () => ++turn;
export const lastTurn = () => turn;
export const isTurn = (number) => number === turn;

const now = () => ({ points: state.points, box: state.box, answer: state.answer, level: state.level, between: state.between, kept: state.kept, selected: state.selected });
export function remember() { history.push(now()); if (history.length > 100) history.shift(); }
export const canUndo = () => history.length > 0;
export function undo() { if (history.length) Object.assign(state, history.pop(), { preview: null, picked: -1 }); }
// False, if the answer to these clicks has not come and what is shown belongs to others; points are never changed in place.
export function isAnswered() {
  const { answer, points, box } = state;
  if (!answer) return !points.length && !box;
  return answer.kind === "whole" || (answer.points === points && answer.box === box);
}
export function forget() { history.length = 0; }

export function dropPrompt() { Object.assign(state, { points: [], box: null, answer: null, between: null, picked: -1, depth: Infinity, preview: null, isChosen: false }); }

export function leaveWhole() { if (state.answer?.kind === "whole") { state.answer = null; state.picked = -1; } }

export const keptAs = (bits) => state.kept.find((one) => isSame(one.bits, bits));

// Keeps a mask and selects it; once, however often it is asked to.
export function keepMask(mask, bits, key) {
  const known = keptAs(bits);
  if (known) { state.selected = known.id; return; }
  const one = { id: nextId, number: mask.number, key, name: sureName(mask), level: mask.level, score: mask.score, colour: colourOf(nextId - 1), bits, place: mask.place, area: mask.area };
  nextId++;
  Object.assign(state, { kept: [...state.kept, one], selected: one.id });
}

export function changeKept(id, changes) {
  state.kept = state.kept.map((one) => (one.id === id ? { ...one, ...changes, canvas: undefined } : one));
}

// Kept masks that are in no download, as they are now.
const saved = new WeakSet();
export function markSaved(rows) { for (const one of rows) saved.add(one); }
export const unsaved = () => state.kept.filter((one) => !saved.has(one));

export const isEmpty = (mask) => !mask.place;

// The names that the model is sure of, "object / part".
export const sureName = (mask) => [mask.object, mask.part].filter((n) => n && n.is_sure !== false).map((n) => n.name).join(" / ");
export const label = (mask) => {
  const names = [mask.object, mask.part].filter(Boolean), sure = names.filter((n) => n.is_sure !== false);
  return sure.map((n) => `${n.name} ${(n.score ?? 1).toFixed(2)}`).join(" / ") || (names.length ? "none of these" : "");
};

// The level to start with: the best predicted IoU among those that have pixels.
export function bestLevel(masks) {
  let best = -1;
  masks.forEach((mask, i) => { if (!isEmpty(mask) && (best < 0 || mask.score > masks[best].score)) best = i; });
  return Math.max(0, best) + 1;
}

// The mask of a click that is shown: that of a level, or of a granularity between two levels.
export function shown() {
  const { answer, between, level } = state;
  if (answer?.kind !== "click") return null;
  if (between) return { ...between, text: `granularity ${between.granularity.toFixed(2)}` };
  return { mask: answer.masks[level - 1], bits: answer.bits(level - 1), text: `level ${level}` };
}

// The colour of a mask of a whole answer; in a tree all parts have that of their whole.
export const foundColour = (answer, i) => colourOf(answer.isTree ? pathUp(answer.masks, i).at(-1) : i);

// What a download holds, in the colours of the page: kept masks, else what is shown.
export function wanted() {
  if (state.kept.length) return { rows: state.kept, text: `${state.kept.length} kept` };
  const answer = state.answer;
  if (!answer) return { rows: [], text: "" };
  if (answer.kind === "whole") return { rows: answer.masks.map((mask, i) => ({ ...mask, key: answer.key, colour: foundColour(answer, i) })), text: `${answer.masks.length} found` };
  const { mask, bits, text } = shown();
  return isEmpty(mask) ? { rows: [], text: "" } : { rows: [{ ...mask, key: answer.key, bits, colour: levelColour(state.level) }], text };
}
