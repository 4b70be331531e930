// Clicks and boxes on one object: asked about, and answered by a mask for each level.
import { ask } from "./image.js";
import { describe, pickGranularity } from "./levels.js";
import { cutBits, loadValues } from "./masks.js";
import { $, app, guarded, say, seconds } from "./page.js";
import { show } from "./panel.js";
import { draw } from "./picture.js";
import { bestLevel, CLICK, dropPrompt, isTurn, leaveWhole, newTurn, remember, state } from "./state.js";

let answers = 0;

export function addPoint(x, y, good) {
  if (state.points.length >= state.info.points) { say(`At most ${state.info.points} clicks on one object.`, true); return; }
  if (!good && !state.points.length && !state.box) { say("Click on the object first, then add negative clicks.", true); return; }
  remember(); leaveWhole();
  state.points = [...state.points, [x, y, good]];
  draw(); segment();
}

export function setBox(box) {
  remember(); leaveWhole();
  Object.assign(state, { box, points: [], isChosen: false });
  segment();
}

export function drop() { remember(); newTurn(); dropPrompt(); show(); say(CLICK); }

// After Undo, if these clicks were followed by others before their answer came.
export function askAgain() { state.answer = null; show(); say("Looking at the earlier clicks again …"); segment(); }

const segment = () => guarded(async () => {
  const turn = newTurn();
  state.preview = null;
  if (!state.points.length && !state.box) { state.answer = null; show(); say(CLICK); return; }
  const start = performance.now(), { points, box } = state;
  const found = await ask("click", { points, box, names: state.names });
  const answer = { ...await readAnswer(found), points, box };
  if (!isTurn(turn)) return;  // a newer click is on its way
  const before = state.isChosen ? state.between : null;
  Object.assign(state, { answer, unknown: found.unknown, between: null });
  if (!state.isChosen) state.level = bestLevel(answer.masks);
  if (before) pickGranularity(before.granularity, true);
  show();
  const trip = (performance.now() - start) / 1000;
  app.dataset.trip = trip.toFixed(4);
  say(`Answered in ${seconds(trip)}. ${describe()}`);
});

async function readAnswer(found) {
  const map = await loadValues(found.picture), cut = [];
  return { id: `click ${++answers}`, key: found.key, kind: "click", masks: found.masks, bits: (i) => (cut[i] ??= cutBits(map, (v) => v >> i & 1)) };
}

// ---- names

export function setNames(value) {
  if (value.trim() === state.names) return;
  state.names = value.trim(); state.unknown = [];
  if (state.answer?.kind === "click") segment(); else show();
}

export function replaceName(from, to) {
  const field = $("#names");
  field.value = field.value.split(/([,;])/).map((part) => (part.trim() === from ? part.replace(from, to) : part)).join("");
  setNames(field.value);
}
