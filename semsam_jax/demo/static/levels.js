// Which mask of a click is shown: that of a level, which the page has, or one between two levels,
// which the slider asks for.
import { ask } from "./image.js";
import { cutBits, loadValues } from "./masks.js";
import { $, guarded, say } from "./page.js";
import { show } from "./panel.js";
import { isEmpty, shown, state } from "./state.js";

const SNAP = 0.012;  // a granularity this near to a level's mark is the level
let wish = null, isAsking = false, turns = 0;

// What is shown, in a sentence.
export function describe() {
  const { mask, text } = shown(), start = text[0].toUpperCase() + text.slice(1);
  if (state.answer.masks.every(isEmpty)) return "Nothing was found there.";
  if (isEmpty(mask)) return `${start} is empty here.`;
  const isUnsure = mask.score < state.info.min_score;
  return `${start}: IoU ${mask.score.toFixed(2)}${isUnsure ? ", unsure. Another level, a second click or a box may be better" : ""}.`;
}

export function pickLevel(level) {
  if (state.answer?.kind !== "click" || level > state.answer.masks.length) return;
  Object.assign(state, { level, isChosen: true, between: null });
  stopSlider();
  show(); say(describe());
}

export function pickGranularity(granularity, isFinal) {
  if (state.answer?.kind !== "click") return;
  const far = state.info.stops.map((stop) => Math.abs(stop - granularity)), near = far.indexOf(Math.min(...far));
  if (far[near] <= SNAP) { pickLevel(near + 1); return; }
  state.isChosen = true;
  wish = { granularity, isFinal };
  if (!isAsking) guarded(askAll);
}

// One question at a time, the newest wish next.
async function askAll() {
  isAsking = true;
  try {
    while (wish && state.answer?.kind === "click") {
      const { granularity, isFinal } = wish, { answer } = state, turn = turns;
      wish = null;
      const body = { points: state.points, box: state.box, names: state.names, granularity, preview: !isFinal };
      const found = await ask("click", body, { isQuiet: !isFinal }), map = await loadValues(found.picture);
      if (answer !== state.answer || turn !== turns) continue;
      const [mask] = found.masks;
      if (!isFinal) mask.number = null;  // not remembered by the server
      Object.assign(state, { level: mask.level, between: { granularity, mask, bits: cutBits(map, (v) => v & 1) } });
      show(); say(describe());
    }
  } finally { isAsking = false; wish = null; }
}

// Forgets what is wanted or on its way.
export function stopSlider() { wish = null; turns++; }

export function listenToSlider() {
  const slider = $("#granularity");
  slider.oninput = () => pickGranularity(Number(slider.value), false);
  slider.onchange = () => pickGranularity(Number(slider.value), true);
}
