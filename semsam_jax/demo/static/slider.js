// The slider: a granularity on a mark is a level, which the page has; any other one is asked for.
import { cutBits, loadValues } from "./masks.js";
import { $ } from "./panel.js";
import { state } from "./state.js";

const SNAP = 0.012;
let wish = null, isAsking = false, turns = 0;

// Forgets what is wanted or on its way.
export function stopSlider() { wish = null; turns++; }

// page: {ask, guarded, level(number), found()} of app.js.
export function pickGranularity(page, granularity, isFinal) {
  if (state.answer?.kind !== "click") return;
  const far = state.info.stops.map((stop) => Math.abs(stop - granularity)), near = far.indexOf(Math.min(...far));
  if (far[near] <= SNAP) { page.level(near + 1); return; }
  state.isChosen = true;
  wish = { granularity, isFinal };
  if (!isAsking) page.guarded(() => askAll(page));
}

// One question at a time, the newest wish next.
async function askAll(page) {
  isAsking = true;
  try {
    while (wish && state.answer?.kind === "click") {
      const { granularity, isFinal } = wish, { answer } = state, turn = turns;
      wish = null;
      const body = { points: state.points, box: state.box, names: state.names, granularity, preview: !isFinal };
      const found = await (await page.ask("click", body, { isQuiet: !isFinal })).json(), map = await loadValues(found.picture);
      if (answer !== state.answer || turn !== turns) continue;
      const [mask] = found.masks;
      if (!isFinal) mask.number = null;  // not remembered by the server
      Object.assign(state, { level: mask.level, between: { granularity, mask, bits: cutBits(map, (v) => v & 1) } });
      page.found();
    }
  } finally { isAsking = false; wish = null; }
}

export function listenToSlider(page) {
  const slider = $("#granularity");
  slider.oninput = () => pickGranularity(page, Number(slider.value), false);
  slider.onchange = () => pickGranularity(page, Number(slider.value), true);
}
