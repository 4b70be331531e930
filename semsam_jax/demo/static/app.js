// The page: what the visitor does -> requests -> pictures.
import { colourOf, drawBox, drawMark, drawName, drawRing, levelColour } from "./draw.js";
import { bitsUrl, cutBits, fillCanvas, hasBit, loadImage, loadValues, mapCanvas, newCanvas, paintLine, wholeMap } from "./masks.js";
import { getInfo, isBusy, onBusy, request, save } from "./net.js";
import { $, showPanel, showStops } from "./panel.js";
import { bestLevel, changeKept, dropPrompt, forget, isEmpty, keepMask, label, remember, shown, state, sureName, undo, wanted } from "./state.js";
import { listenToSlider, pickGranularity, stopSlider } from "./slider.js";
import { atDepth, pathUp, turnedDepth } from "./tree.js";
import { View } from "./view.js";

const app = $("#app"), canvas = $("#view"), frame = $("#frame"), view = new View(canvas, frame);
const CLICK = "Click on something.", REST_MS = 140;
const FORGOTTEN = "The server has forgotten these masks. Segment everything again.";
let asked = 0, answers = 0, drag = null, painted = null, pointed = null, cursor = null, isSpace = false, timer = 0;
const pointers = new Map();

const seconds = (x) => (x < 0.0995 ? `${Math.max(1, Math.round(1000 * x))} ms` : `${x.toFixed(2)} s`);
function say(text, isError = false) {
  $("#status").textContent = text;
  $("#status").classList.toggle("error", isError);
}
async function guarded(work) { try { await work(); } catch (error) { say(error.message, true); } }
onBusy.change = () => { frame.classList.toggle("waiting", isBusy()); app.toggleAttribute("data-busy", isBusy()); };

// Asks about the image; if the server has put it away in the meantime, sends it once more.
async function ask(path, body, options = {}) {
  try {
    return await request(path, { image: state.image.key, ...body }, options);
  } catch (error) {
    if (!error.isGone) throw error;
    await resend();
    return request(path, { image: state.image.key, ...body }, options);
  }
}
// Numbers of masks belong to the image as it was sent: from now on the old ones mean nothing.
async function resend() {
  state.image.key = (await (await request("image", state.image.file, { isRaw: true })).json()).image;
}

const open = (file, name) => guarded(async () => {
  if (!leaveKept()) return;
  say("Sending the image …");
  const old = state.image, found = await (await request("image", file, { isRaw: true })).json();
  if (old) request("forget", { image: old.key }).catch(() => {});
  state.image = { key: found.image, width: found.width, height: found.height, file, name, element: await loadImage(found.view) };
  startAgain();
  app.dataset.state = "image";
  view.setImage(found.width, found.height);
  show();
  say("Looking at the image …");
  const encoded = await (await ask("encode", {})).json();
  say(`Ready: image encoded in ${seconds(encoded.encode_sec)}. ${CLICK}`);
});
const leaveKept = () => state.isSaved || !state.kept.length
  || confirm(`${state.kept.length} kept masks of this image are not downloaded. Leave them?`);
function startAgain() { asked++; dropPrompt(); forget(); Object.assign(state, { kept: [], selected: null, isSaved: true, unknown: [] }); }

async function readClick(found) {
  const map = await loadValues(found.picture), cut = [];
  return { id: ++answers, key: state.image.key, kind: "click", masks: found.masks, bits: (i) => (cut[i] ??= cutBits(map, (v) => v >> i & 1)) };
}

const segment = () => guarded(async () => {
  const turn = ++asked;
  state.preview = null;
  if (!state.points.length && !state.box) { state.answer = null; show(); say(CLICK); return; }
  const start = performance.now();
  const found = await (await ask("click", { points: state.points, box: state.box, names: state.names })).json();
  const answer = await readClick(found);
  if (turn !== asked) return;  // a newer click is on its way
  const before = state.isChosen ? state.between : null;
  Object.assign(state, { answer, unknown: found.unknown, between: null });
  if (!state.isChosen) state.level = bestLevel(answer.masks);
  if (before) pickGranularity(slider, before.granularity, true);
  show();
  const trip = (performance.now() - start) / 1000;
  app.dataset.trip = trip.toFixed(4);
  say(`Answered in ${seconds(trip)}. ${describe()}`);
});

function describe() {
  const { mask, text } = shown(), start = text[0].toUpperCase() + text.slice(1);
  if (state.answer.masks.every(isEmpty)) return "Nothing was found there.";
  return isEmpty(mask) ? `${start} is empty here.` : `${start}: IoU ${mask.score.toFixed(2)}.`;
}

const whole = (path, body, what) => guarded(async () => {
  if (!state.image) { say("Choose an image first.", true); return; }
  remember(); dropPrompt(); show();
  const turn = ++asked;
  say("Looking at the whole image …");
  const found = await (await ask(path, { names: state.names, ...body })).json();
  const map = await loadValues(found.picture);
  if (turn !== asked) return;
  state.unknown = found.unknown;
  const isTree = body.tree === true, number = found.masks.length;
  state.answer = number ? { id: ++answers, key: state.image.key, kind: "whole", masks: found.masks, map, isTree } : null;
  show();
  const how = isTree ? "The wheel goes up to the whole and down to the parts. Click to keep" : "Click on a mask to keep it";
  say(number ? `${number} ${what} in ${seconds(found.decode_sec)}. ${how}; Esc goes back to clicks.`
    : path === "panoptic" ? "The model is not sure enough about any of these names." : "Nothing scores that high. Lower Min. score in the settings.");
});

// The mask under a resting pointer, before any click.
function planPreview(x, y) {
  clearTimeout(timer);
  const isFree = $("#preview").checked && state.mode === "add" && !state.answer && !state.points.length && !state.box && !drag;
  if (!isFree || (state.preview && hasBit(state.preview.bits, x, y))) return;
  if (state.preview) { state.preview = null; draw(); }
  timer = setTimeout(async () => {
    if (isBusy()) return;
    const turn = asked;
    try {
      const found = await (await request("click", { image: state.image.key, points: [[x, y, 1]], box: null, names: "", preview: true }, { isQuiet: true })).json();
      if (turn !== asked || state.answer || state.points.length) return;
      const map = await loadValues(found.picture), level = bestLevel(found.masks);
      state.preview = { bits: cutBits(map, (v) => v >> (level - 1) & 1), level };
      draw();
    } catch { /* a preview that fails is no preview */ }
  }, REST_MS);
}

// ---- pictures

function draw() {
  if (!state.image) return;
  const context = view.begin(), ratio = window.devicePixelRatio || 1, size = 8 * ratio, chips = [], taken = [];
  const answer = state.answer;
  view.put(context, state.image.element);
  const put = (bits, picture) => view.put(context, picture, bits.x, bits.y, bits.w, bits.h);
  for (const one of [...state.kept].reverse()) {
    const bits = painted?.id === one.id ? painted.bits() : one.bits;
    if (!bits.w) continue;
    const picture = painted?.id === one.id ? fillCanvas(bits, one.colour, 0.5) : (one.canvas ??= fillCanvas(bits, one.colour, 0.42));
    context.globalAlpha = pointed && pointed !== one.id ? 0.3 : 1;
    put(bits, picture);
    context.globalAlpha = 1;
    if (one.name && (!pointed || pointed === one.id)) chips.push([one, one.colour, one.name]);
  }
  if (answer?.kind === "click") {
    const colour = levelColour(state.level), { mask, bits } = shown();
    if (bits.w) put(bits, fillCanvas(bits, colour, 0.45));
    if (label(mask)) chips.push([mask, colour, label(mask)]);
  } else if (answer) {
    // In a tree what lies inside a mask has its colour, so that whole and parts are picked alike.
    const colours = answer.masks.map((_, i) => {
      const path = answer.isTree ? pathUp(answer.masks, i) : [i], isIn = path.includes(state.picked);
      return [...colourOf(isIn ? state.picked : path.at(-1)), state.picked < 0 ? 0.5 : isIn ? 0.65 : 0.1];
    });
    view.put(context, mapCanvas(answer.map, (v) => (v ? colours[v - 1] : null)));
    answer.masks.forEach((mask, i) => { if (sureName(mask) && (state.picked < 0 ? !mask.depth : state.picked === i)) chips.push([mask, colourOf(i), label(mask)]); });
  } else if (state.preview?.bits.w) put(state.preview.bits, fillCanvas(state.preview.bits, levelColour(state.preview.level), 0.22));
  for (const [mask, colour, text] of chips.sort((a, b) => b[0].area - a[0].area)) {
    if (!mask.place) continue;
    const done = drawName(context, text, ...view.toCanvas(mask.place[0] * view.width, mask.place[1] * view.height), colour, 12.5 * ratio, taken);
    if (done) taken.push(done);
  }
  const boxes = [state.box, drag?.isBox ? [drag.x0, drag.y0, drag.x1, drag.y1] : null];
  for (const b of boxes) if (b) drawBox(context, ...view.toCanvas(b[0], b[1]), ...view.toCanvas(b[2], b[3]), size);
  for (const [x, y, good] of state.points) drawMark(context, ...view.toCanvas(x, y), good === 1, size);
  if (isPainting() && cursor) drawRing(context, ...view.toCanvas(...cursor), brush() * view.scale);
  $("#zoom").textContent = `${Math.round(100 * view.zoom)} %`;
}
function show() { draw(); showPanel(on); }
const isPainting = () => state.mode === "brush" || state.mode === "eraser";
const brush = () => Number($("#brush").value);

// ---- what the panel asks for

function pickLevel(level) {
  if (state.answer?.kind !== "click" || level > state.answer.masks.length) return;
  Object.assign(state, { level, isChosen: true, between: null });
  stopSlider();
  show(); say(describe());
}
function pick(index) {
  if (index === state.picked) return;
  state.picked = index; draw();
  document.querySelectorAll("#result li").forEach((row, i) => row.classList.toggle("picked", i === index));
}
async function keepFound(indices) {
  const answer = state.answer, rows = indices.map((i) => answer.masks[i]), kept = [];
  if (answer.key !== state.image.key) throw new Error(FORGOTTEN);
  for (let start = 0; start < rows.length; start += 32) {
    const part = rows.slice(start, start + 32);
    const found = await (await ask("masks", { masks: part.map((mask) => mask.number) })).json();
    for (const [i, one] of found.masks.entries()) kept.push([part[i], cutBits(await loadValues(one.picture), (v) => v > 127)]);
  }
  if (answer !== state.answer) return;
  remember();
  for (const [mask, bits] of kept) keepMask(mask, bits, answer.key);
  show(); say(`${state.kept.length} kept.`);
}
const on = {
  draw, show, pick,
  level: pickLevel,
  keepFound: (i) => guarded(() => keepFound([i])),
  keepAll: () => guarded(async () => {
    await keepFound(state.answer.masks.map((_, i) => i));
    dropPrompt(); show();
  }),
  select(id) { state.selected = id; show(); },
  point(id) { if (pointed !== id) { pointed = id; draw(); } },
  move(from, by) {
    const to = from + by;
    if (!by || to < 0 || to >= state.kept.length) return;
    remember();
    const kept = [...state.kept], [one] = kept.splice(from, 1);
    kept.splice(to, 0, one); state.kept = kept; show();
  },
  remove(id) {
    remember();
    state.kept = state.kept.filter((one) => one.id !== id); pointed = null;
    show(); say("Deleted. Undo brings it back.");
  },
  replaceName(from, to) {
    const field = $("#names");
    field.value = field.value.split(/([,;])/).map((part) => (part.trim() === from ? part.replace(from, to) : part)).join("");
    setNames(field.value);
  },
};
const slider = { ask, guarded, level: pickLevel, found() { show(); say(describe()); } };
function setNames(value) {
  if (value.trim() === state.names) return;
  state.names = value.trim(); state.unknown = [];
  if (state.answer?.kind === "click") segment(); else show();
}

const actions = {
  undo() { asked++; stopSlider(); undo(); show(); say(state.answer?.kind === "click" ? describe() : CLICK); },
  drop() { remember(); asked++; dropPrompt(); show(); say(CLICK); },
  keep() {
    const { mask, bits } = shown();
    remember(); keepMask(mask, bits, state.answer.key);
    asked++; dropPrompt(); show(); say(`${state.kept.length} kept. Click on the next object.`);
  },
  fit() { view.fit(); afterZoom(); }, zoomIn() { view.zoomAt(1.5); afterZoom(); }, zoomOut() { view.zoomAt(1 / 1.5); afterZoom(); },
  close() {
    if (!leaveKept()) return;
    request("forget", { image: state.image.key }).catch(() => {});
    startAgain(); state.image = null; app.dataset.state = "empty";
    showPanel(on); say("");
  },
};
function afterZoom() { setTouch(); draw(); }
function setTouch() { canvas.style.touchAction = view.zoom > 1 || !["add", "remove"].includes(state.mode) ? "none" : "pan-y"; }
function setMode(mode) {
  Object.assign(state, { mode, preview: null });
  document.querySelectorAll("[data-mode]").forEach((b) => b.setAttribute("aria-checked", String(b.dataset.mode === mode)));
  canvas.style.cursor = isPainting() ? "none" : "crosshair";
  setTouch(); draw();
  if (isPainting() && !state.kept.length && state.answer?.kind !== "click") say("Keep a mask first: brush and eraser change kept masks.");
}

// ---- brush and eraser

function startPaint(x, y) {
  if (shown() && !isEmpty(shown().mask)) actions.keep();
  const one = state.kept.find((k) => k.id === state.selected) ?? state.kept.at(-1);
  if (!one) { say("Keep a mask first: brush and eraser change kept masks.", true); return; }
  state.selected = one.id;
  const map = wholeMap(one.bits);
  let cut = null;
  painted = { id: one.id, map, x, y, bits: () => (cut ??= cutBits(map, (v) => v)), touch: () => { cut = null; } };
  paintTo(x, y);
}
function paintTo(x, y) {
  paintLine(painted.map, painted.x, painted.y, x, y, brush(), state.mode === "brush" ? 1 : 0);
  Object.assign(painted, { x, y }); painted.touch(); draw();
}
const endPaint = () => guarded(async () => {
  const { id, bits: cut } = painted, bits = cut();
  painted = null;
  remember(); changeKept(id, { bits, number: null });
  show(); say("Painted.");
  await store(state.kept.find((one) => one.id === id));
});
// The server learns a mask that was painted, or that it has forgotten.
async function store(one) {
  const found = await (await ask("edit", { picture: bitsUrl(one.bits), level: one.level ?? 0, score: one.score })).json();
  const now = state.kept.find((k) => k.id === one.id);
  if (now?.bits === one.bits) { Object.assign(now, { number: found.number, key: state.image.key, place: found.place, area: found.area }); draw(); }
  return found.number;
}

// ---- pointers

canvas.addEventListener("pointerdown", (event) => {
  if (!state.image) return;
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
  clearTimeout(timer);
  if (pointers.size === 2) { drag = null; painted = null; canvas.setPointerCapture(event.pointerId); draw(); return; }
  if (!event.isPrimary || event.button === 2) return;
  const [x, y] = view.place(event);
  const isPan = event.button === 1 || isSpace || (event.pointerType === "touch" && view.zoom > 1 && ["add", "remove"].includes(state.mode));
  if (event.button === 1) event.preventDefault();
  drag = { x0: x, y0: y, x1: x, y1: y, startX: event.clientX, startY: event.clientY, isBox: false, isFar: false, isPan, isTap: event.button === 0 && !isSpace };
  if (event.pointerType === "mouse" || state.mode === "box" || isPainting() || isPan) canvas.setPointerCapture(event.pointerId);
  if (isPainting() && !isPan) startPaint(x, y);
});
canvas.addEventListener("pointermove", (event) => {
  if (!state.image) return;
  const [x, y] = view.place(event), last = pointers.get(event.pointerId);
  cursor = [x, y];
  if (last) pointers.set(event.pointerId, [event.clientX, event.clientY]);
  if (last && pointers.size === 2) { pinch(event.pointerId, last); return; }
  if (painted) { paintTo(x, y); return; }
  if (!drag) {
    if (isPainting()) draw();
    else if (event.pointerType === "mouse") { if (state.answer?.kind === "whole") pick(pickAt(x, y)); else planPreview(x, y); }
    return;
  }
  drag.isFar ||= Math.hypot(event.clientX - drag.startX, event.clientY - drag.startY) > 8;
  if (drag.isPan) { if (drag.isFar && last) { view.panBy(event.clientX - last[0], event.clientY - last[1]); draw(); } return; }
  if (!drag.isFar || isPainting() || !(state.mode === "box" || event.pointerType === "mouse")) return;
  Object.assign(drag, { x1: x, y1: y, isBox: true });
  draw();
});
canvas.addEventListener("pointerup", (event) => {
  pointers.delete(event.pointerId);
  if (painted) { drag = null; endPaint(); return; }
  if (!drag) return;
  const done = drag; drag = null;
  const [x0, x1] = [done.x0, done.x1].sort((a, b) => a - b), [y0, y1] = [done.y0, done.y1].sort((a, b) => a - b);
  if (done.isPan && (done.isFar || !done.isTap)) return;
  if (done.isBox && x1 - x0 > 2 && y1 - y0 > 2) { remember(); leaveWhole(); Object.assign(state, { box: [x0, y0, x1, y1], points: [], isChosen: false }); segment(); }
  else if (state.answer?.kind === "whole") clickFound(done.x0, done.y0);
  else if (state.mode === "box") { draw(); say("Drag a box around the object."); }
  else if (!isPainting()) addPoint(done.x0, done.y0, state.mode === "add" ? 1 : 0);
});
canvas.addEventListener("pointercancel", (event) => { pointers.delete(event.pointerId); drag = null; painted = null; draw(); });
canvas.addEventListener("pointerleave", () => { clearTimeout(timer); cursor = null; if (!drag) { state.preview = null; pick(-1); draw(); } });
canvas.addEventListener("contextmenu", (event) => {
  event.preventDefault();
  if (state.image && !isPainting()) addPoint(...view.place(event), 0);
});
canvas.addEventListener("wheel", (event) => {
  if (!state.image) return;
  event.preventDefault();
  if (state.answer?.isTree && !event.ctrlKey) { climb(event); return; }
  view.zoomAt(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0018)), ...view.place(event));
  afterZoom();
}, { passive: false });

function pinch(id, last) {
  const [a, b] = [...pointers.values()], other = [...pointers.entries()].find(([key]) => key !== id)[1], here = pointers.get(id);
  const before = Math.hypot(last[0] - other[0], last[1] - other[1]), after = Math.hypot(here[0] - other[0], here[1] - other[1]);
  view.zoomAt(after / Math.max(1, before), ...view.place({ clientX: (a[0] + b[0]) / 2, clientY: (a[1] + b[1]) / 2 }));
  view.panBy((here[0] - last[0]) / 2, (here[1] - last[1]) / 2);
  afterZoom();
}
function addPoint(x, y, good) {
  if (state.points.length >= state.info.points) { say(`At most ${state.info.points} clicks on one object.`, true); return; }
  if (!good && !state.points.length && !state.box) { say("First click on the object, then beside it.", true); return; }
  remember(); leaveWhole();
  state.points = [...state.points, [x, y, good]];
  draw(); segment();
}
function leaveWhole() { if (state.answer?.kind === "whole") { state.answer = null; state.picked = -1; } }
function foundAt(x, y) {
  const { values, width, height } = state.answer.map;
  return values[Math.min(height - 1, Math.floor(y)) * width + Math.min(width - 1, Math.floor(x))] - 1;
}
// In a tree the mask at the depth that the wheel has chosen.
function pickAt(x, y) {
  const i = foundAt(x, y), { masks, isTree } = state.answer;
  return isTree ? atDepth(masks, i, state.depth) : i;
}
function climb(event) {
  const here = view.place(event), i = foundAt(...here), { masks } = state.answer;
  state.depth = turnedDepth(masks, i, state.depth, event.deltaY);
  pick(pickAt(...here));
  if (i < 0) return;
  const mask = masks[state.picked], what = label(mask) || (mask.depth ? "A part" : "A whole");
  say(`${what}, granularity ${mask.granularity.toFixed(2)}: step ${mask.depth + 1} of ${masks[i].depth + 1}.`);
}
function clickFound(x, y) {
  const i = pickAt(x, y);
  if (i < 0) say("No mask here. Esc goes back to clicks."); else on.keepFound(i);
}

// ---- downloads

const stem = () => state.image.name.replace(/\.[^.]*$/, "") || "image";
const download = (kind) => guarded(async () => {
  const { rows, text } = wanted();
  if (!rows.length) { say("There are no masks yet. Click on something first.", true); return; }
  if (kind === "cutout") { save(await cutOut(rows), `${stem()}_cutout.png`); state.isSaved = true; say(`${stem()}_cutout.png: ${text}.`); return; }
  const send = async () => {
    const masks = [];
    for (const one of rows) {
      const isKnown = one.number !== null && one.key === state.image.key;
      if (!isKnown && !one.bits) throw new Error(FORGOTTEN);
      masks.push({ number: isKnown ? one.number : await store(one), ...("name" in one ? { name: one.name } : {}) });
    }
    return request("download", { image: state.image.key, kind, masks, file_name: state.image.name });
  };
  let response;
  try {
    response = await send();
  } catch (error) {
    if (error.status !== 410) throw error;
    // The server has forgotten the image or some of its masks: the page has not.
    if (error.isGone) await resend(); else for (const one of rows) one.key = null;
    response = await send();
  }
  const name = /filename="([^"]+)"/.exec(response.headers.get("content-disposition"))[1];
  save(await response.blob(), name);
  state.isSaved = true;
  say(`${name}: ${text}.`);
});
// The pixels of the file inside the masks, with the rest transparent; made here, at the file's size.
async function cutOut(rows) {
  const picture = await createImageBitmap(state.image.file, { imageOrientation: "from-image" });
  const masks = newCanvas(state.image.width, state.image.height), context = masks.getContext("2d");
  for (const one of rows) {
    const bits = one.bits ?? cutBits(await loadValues((await (await ask("masks", { masks: [one.number] })).json()).masks[0].picture), (v) => v > 127);
    if (bits.w) context.drawImage(fillCanvas(bits, [0, 0, 0], 1, false), bits.x, bits.y);
  }
  const out = newCanvas(picture.width, picture.height), paper = out.getContext("2d");
  paper.drawImage(picture, 0, 0);
  paper.globalCompositeOperation = "destination-in";
  paper.drawImage(masks, 0, 0, picture.width, picture.height);
  return new Promise((resolve, reject) => out.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The image is too large for a cut-out."))), "image/png"));
}

// ---- keys and buttons

document.addEventListener("keydown", (event) => {
  const isField = event.target.matches?.("input:not([type=range]):not([type=checkbox]), select, textarea");
  if (event.ctrlKey && event.key.toLowerCase() === "z" && !isField && state.image) { event.preventDefault(); if (!$("[data-do=undo]").disabled) actions.undo(); return; }
  if (isField || event.ctrlKey || event.metaKey || event.altKey || $("#keys").open) return;
  const key = event.key.toLowerCase();
  if (key === "?") { $("#keys").showModal(); return; }
  if (!state.image) return;
  const press = (name) => { if (!$(`[data-do=${name}]`).disabled) actions[name](); };
  const size = $("#brush"), step = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] }[key];
  const modes = { a: "add", r: "remove", b: "box", p: "brush", e: "eraser" };
  if (key >= "1" && key <= "9") pickLevel(Number(key));
  else if (key in modes) setMode(modes[key]);
  else if (key === "z") press("undo");
  else if (key === "k") press("keep");
  else if (key === "escape") press("drop");
  else if (key === "delete" && state.selected !== null && state.kept.some((one) => one.id === state.selected)) on.remove(state.selected);
  else if (key === "+" || key === "=") actions.zoomIn();
  else if (key === "-") actions.zoomOut();
  else if (key === "0") actions.fit();
  else if (key === "[" || key === "]") { size.value = Number(size.value) + (key === "]" ? 3 : -3); size.oninput(); }
  else if (key === " " && event.target === canvas) { isSpace = true; event.preventDefault(); }
  else if (step && view.zoom > 1 && !event.target.matches("input")) { event.preventDefault(); view.pan(step[0] * view.width / view.zoom / 8, step[1] * view.height / view.zoom / 8); draw(); }
});
document.addEventListener("keyup", (event) => { if (event.key === " ") isSpace = false; });
document.querySelectorAll("[data-do]").forEach((button) => { button.onclick = () => actions[button.dataset.do](); });
document.querySelectorAll("[data-mode]").forEach((button) => { button.onclick = () => setMode(button.dataset.mode); });
document.querySelectorAll("[data-get]").forEach((button) => { button.onclick = () => download(button.dataset.get); });
$("#help").onclick = () => $("#keys").showModal();
listenToSlider(slider);
$("#brush").oninput = () => { $("#brush-value").textContent = `${brush()} px`; draw(); };
$("#min-score").oninput = () => { $("#min-score-value").textContent = Number($("#min-score").value).toFixed(2); };
$("#names").onchange = () => setNames($("#names").value);
$("#clear-all").onclick = () => { remember(); Object.assign(state, { kept: [], selected: null }); show(); say("All kept masks removed. Undo brings them back."); };
$("#everything").onclick = () => everything({}, "masks");
$("#tree").onclick = () => everything({ tree: true }, "masks in a tree");
function everything(more, what) {
  state.names = $("#names").value.trim();
  const one = $("#which").value === "one", between = one && state.between;
  const choice = between ? { level: 0, granularity: between.granularity } : { level: one ? state.level : 0 };
  whole("everything", { grid: Number($("#grid").value), quality: Number($("#min-score").value), ...choice, ...more }, what);
}
$("#panoptic").onclick = () => { state.names = $("#names").value.trim(); whole("panoptic", {}, "segments"); };
$("#choose").onclick = () => $("#file").click();
$("#file").onchange = () => { const file = $("#file").files[0]; $("#file").value = ""; if (file) open(file, file.name); };
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  window.addEventListener(name, (event) => {
    if (event.dataTransfer?.types.includes("text/x-kept")) return;
    event.preventDefault();
    app.classList.toggle("over", name === "dragenter" || name === "dragover");
    const file = name === "drop" && event.dataTransfer.files[0];
    if (file) open(file, file.name);
  });
}
window.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files || [])].find((f) => f.type.startsWith("image/"));
  if (file) open(file, "pasted.png");
});
window.addEventListener("beforeunload", (event) => { if (!state.isSaved && state.kept.length) event.preventDefault(); });
window.addEventListener("pagehide", () => { if (state.image) navigator.sendBeacon("api/forget", JSON.stringify({ image: state.image.key })); });
new ResizeObserver(() => draw()).observe(frame);

guarded(async () => {
  const info = state.info = await getInfo();
  $("#model").textContent = info.model;
  showStops();
  $("#names").disabled = !info.knows_names;
  if (!info.knows_names) $("#names").placeholder = "this model gives no names";
  $("#panoptic").disabled = !info.has_panoptic;
  $("#min-score").value = info.min_score; $("#min-score").oninput();
  $("#grid").replaceChildren(...info.grids.map((n) => new Option(`${n} × ${n} clicks`, n, n === 16, n === 16)));
  $("#examples").replaceChildren(...Array.from({ length: info.examples }, (_, i) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "example" });
    button.setAttribute("aria-label", `example image ${i + 1}`);
    button.append(Object.assign(new Image(), { src: `examples/${i}.jpg`, alt: "" }));
    button.onclick = () => guarded(async () => open(await (await fetch(`examples/${i}.jpg`)).blob(), `example_${i + 1}.jpg`));
    return button;
  }));
  showPanel(on);
  app.dataset.ready = "yes";
});
