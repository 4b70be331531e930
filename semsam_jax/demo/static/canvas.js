// The canvas: what the visitor does -> requests -> pictures. Runs once, when the page is ready.
const $ = (selector) => element.querySelector(selector);
const stage = $(".ss-stage"), view = $(".ss-view"), frame = $(".ss-frame"), statusLine = $(".ss-status"), fileInput = $(".ss-file");
const resultBox = () => document.getElementById("ss-result");
let image = null;        // {key, width, height, element, file, name}
let points = [], box = null, mode = "add", level = 1, names = "";
let answer = null;       // {kind: "click" | "whole", masks, map}
let kept = [];           // {mask, level, map, bit, colour}
let picked = -1;         // index of the mask that is pointed at, whole-image answers
let drag = null, asked = 0, pending = 0;

const label = (mask) => {
  const names = [mask.object, mask.part].filter(Boolean), sure = names.filter((n) => n.is_sure !== false);
  return sure.map((n) => `${n.name} ${percent(n.score ?? 1)}`).join(" / ") || (names.length ? "none of these" : "");
};
const leftOut = (names) => (!names?.length ? "" : ` Not known: ${names.map((n) => n.name
  + (n.nearest.length ? ` (try ${n.nearest.join(", ")})` : "")).join("; ")}.`);
const percent = (x) => `${Math.round(100 * Math.min(1, Math.max(0, x)))} %`;
const seconds = (x) => (x < 0.0995 ? `${Math.max(1, Math.round(1000 * x))} ms` : `${x.toFixed(2)} s`);
const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

function say(text, isError = false) {
  statusLine.textContent = text;
  statusLine.classList.toggle("ss-error", isError);
}

async function request(path, body, isRaw = false) {
  pending++; frame.classList.add("ss-waiting"); stage.dataset.busy = "yes";
  try {
    const response = await fetch(`api/${path}`, {
      method: "POST", body: isRaw ? body : JSON.stringify(body),
      headers: { "content-type": isRaw ? "application/octet-stream" : "application/json" },
    });
    if (response.ok) return response;
    const details = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
    throw Object.assign(new Error(details.error), { isGone: details.is_gone });
  } catch (error) {
    if (error instanceof TypeError) throw new Error("The server cannot be reached, or it refused the file.");
    throw error;
  } finally {
    pending--;
    if (!pending) { frame.classList.remove("ss-waiting"); delete stage.dataset.busy; }
  }
}

// Asks about the image; if the server has put it away in the meantime, sends it once more.
async function ask(path, body) {
  try {
    return await request(path, { image: image.key, ...body });
  } catch (error) {
    if (!error.isGone) throw error;
    const again = await (await request("image", image.file, true)).json();
    image.key = again.image; kept = [];
    return request(path, { image: image.key, ...body });
  }
}

async function guarded(work) {
  try { await work(); } catch (error) { say(error.message, true); }
}

const open = (file, name) => guarded(async () => {
  say("Sending the image …");
  const old = image;
  const found = await (await request("image", file, true)).json();
  if (old) request("forget", { image: old.key }).catch(() => {});
  image = { key: found.image, width: found.width, height: found.height, file, name, element: await loadImage(found.view) };
  reset(); kept = [];
  stage.dataset.state = "image";
  frame.style.aspectRatio = `${found.width} / ${found.height}`;
  frame.style.setProperty("--image-aspect", found.width / found.height);
  draw(); showResult();
  say("Looking at the image …");
  const encoded = await (await ask("encode", {})).json();
  say(`Ready: image encoded in ${seconds(encoded.encode_sec)}. Click on something.`);
});

function reset() { points = []; box = null; answer = null; picked = -1; drag = null; asked++; }

const segment = () => guarded(async () => {
  const turn = ++asked;
  if (!points.length && !box) { answer = null; draw(); showResult(); say("Click on something."); return; }
  const start = performance.now();
  const found = await (await ask("click", { points, box, names })).json();
  const map = await loadValues(found.picture);
  if (turn !== asked) return;  // a newer click is on its way
  answer = { kind: "click", masks: found.masks, map };
  draw(); showResult();
  const trip = (performance.now() - start) / 1000;
  stage.dataset.trip = trip.toFixed(4);
  say(`Answered in ${seconds(trip)} (model ${seconds(found.decode_sec)}; image encoded once, ${seconds(found.encode_sec)}).${leftOut(found.unknown)}`);
});

const whole = (path, body, what) => guarded(async () => {
  if (!image) { say("Choose an image first.", true); return; }
  reset(); kept = []; draw();
  const turn = asked;
  say("Looking at the whole image …");
  const found = await (await ask(path, { names, ...body })).json();
  const map = await loadValues(found.picture);
  if (turn !== asked) return;
  answer = { kind: "whole", masks: found.masks, map };
  draw(); showResult();
  const number = found.masks.length;
  say((number ? `${number} ${what} in ${seconds(found.decode_sec)}.`
    : path === "panoptic" ? "The model is not sure enough about any of these names."
    : "Nothing is that good. Lower the least quality in the settings.") + leftOut(found.unknown));
});

// ---- pictures

function bitCanvas(map, bit, colour, opacity) {
  const paint = Object.assign([...colour, opacity], { group: "in" });
  return maskCanvas(map, (v) => (v >> bit & 1 ? paint : null));
}

function draw() {
  if (!image) return;
  const scale = fitCanvas(view, image.width, image.height), context = view.getContext("2d");
  const put = (canvas) => context.drawImage(canvas, 0, 0, view.width, view.height);
  const ratio = window.devicePixelRatio || 1, size = 8 * ratio, taken = [], chips = [];
  put(image.element);
  for (const one of kept) {
    put(one.canvas ??= bitCanvas(one.map, one.bit, one.colour, 0.42));
    chips.push([one.mask, one.colour, label(one.mask) || `level ${one.level}`]);
  }
  if (answer?.kind === "click") {
    const i = Math.min(level, answer.masks.length) - 1, colour = LEVEL_COLOURS[i];
    put(bitCanvas(answer.map, i, colour, 0.45));
    if (label(answer.masks[i])) chips.push([answer.masks[i], colour, label(answer.masks[i])]);
  } else if (answer) {
    const colours = answer.masks.map((_, i) => [...colourOf(i), picked < 0 ? 0.5 : i === picked ? 0.62 : 0.12]);
    put(maskCanvas(answer.map, (v) => (v ? colours[v - 1] : null)));
    answer.masks.forEach((mask, i) => { if (label(mask) && (picked < 0 || picked === i)) chips.push([mask, colourOf(i), label(mask)]); });
  }
  for (const [mask, colour, text] of chips.sort((a, b) => b[0].area - a[0].area)) {
    if (!mask.place) continue;
    const done = drawName(context, text, mask.place[0] * view.width, mask.place[1] * view.height, colour, 12.5 * ratio, taken);
    if (done) taken.push(done);
  }
  const frames = [box, drag && drag.isBox ? [drag.x0, drag.y0, drag.x1, drag.y1] : null];
  for (const b of frames) if (b) drawBox(context, ...b.map((v) => v * scale), size);
  for (const [x, y, good] of points) drawMark(context, x * scale, y * scale, good === 1, size);
  for (const name of ["undo", "clear"]) $(`[data-do=${name}]`).disabled = !points.length && !box && !answer && !kept.length;
  $("[data-do=keep]").disabled = answer?.kind !== "click";
}

function showResult() {
  const target = resultBox();
  if (!target) return;
  if (!answer || !answer.masks.length) {
    target.innerHTML = `<p class="ss-hint">${kept.length ? `${kept.length} kept. Click on the next object.` : "The six masks of a click appear here."}</p>`;
    return;
  }
  if (answer.kind === "click") showStrip(target); else showList(target);
}

function showStrip(target) {
  target.innerHTML = `<div class="ss-strip">${answer.masks.map((mask, i) => `
    <button type="button" class="ss-level" data-level="${i + 1}" style="--c:${css(LEVEL_COLOURS[i])}" aria-pressed="${i + 1 === level}"
      aria-label="level ${i + 1}"><canvas></canvas><span><b>${i + 1}</b> ${mask.place ? escape(label(mask)) || percent(mask.score) : 'nothing'}</span></button>`).join("")}</div>`;
  target.querySelectorAll(".ss-level").forEach((button, i) => {
    const canvas = button.querySelector("canvas"), context = canvas.getContext("2d");
    const scale = 320 / Math.max(image.width, image.height);
    canvas.width = Math.max(1, Math.round(image.width * scale)); canvas.height = Math.max(1, Math.round(image.height * scale));
    context.drawImage(image.element, 0, 0, canvas.width, canvas.height);
    context.drawImage(shadeCanvas(answer.map, (v) => v >> i & 1), 0, 0, canvas.width, canvas.height);
    const mask = answer.masks[i];
    button.title = `level ${i + 1}: predicted IoU ${percent(mask.score)}, ${percent(mask.area)} of the image`
      + [mask.object, mask.part].filter(Boolean).map((n) => `, ${n.name} ${percent(n.score)}`).join("");
    button.onclick = () => { level = i + 1; trigger("level"); changeLevel(); };
  });
}

function showList(target) {
  target.innerHTML = `<ol class="ss-list">${answer.masks.map((mask, i) => `
    <li data-index="${i}"><i style="background:${css(colourOf(i))}"></i><span>${escape(label(mask)) || `mask ${i + 1}`}</span>
    <small>${mask.level ? `level ${mask.level} · ` : ""}${percent(mask.score)}</small></li>`).join("")}</ol>`;
  target.querySelectorAll("li").forEach((item) => {
    item.onpointerenter = () => pick(Number(item.dataset.index));
    item.onpointerleave = () => pick(-1);
  });
}

function pick(index) {
  if (index === picked) return;
  picked = index;
  resultBox()?.querySelectorAll("li").forEach((li, i) => li.classList.toggle("ss-picked", i === index));
  draw();
}

function changeLevel() {
  resultBox()?.querySelectorAll(".ss-level").forEach((b, i) => b.setAttribute("aria-pressed", String(i + 1 === level)));
  draw();
}

// ---- what the visitor does

function place(event) {
  const area = view.getBoundingClientRect();
  const clip = (v, top) => Math.min(Math.max(v, 0), top);
  return [clip((event.clientX - area.left) / area.width * image.width, image.width),
    clip((event.clientY - area.top) / area.height * image.height, image.height)];
}

view.addEventListener("pointerdown", (event) => {
  if (!image || !event.isPrimary || event.button > 0) return;
  const [x, y] = place(event);
  drag = { x0: x, y0: y, x1: x, y1: y, startX: event.clientX, startY: event.clientY, isBox: false, id: event.pointerId };
  if (mode === "box" || event.pointerType === "mouse") view.setPointerCapture(event.pointerId);
});
view.addEventListener("pointermove", (event) => {
  if (!image) return;
  if (!drag) {
    if (answer?.kind === "whole" && event.pointerType === "mouse") pickAt(...place(event));
    return;
  }
  const isFar = Math.hypot(event.clientX - drag.startX, event.clientY - drag.startY) > 8;
  if (!drag.isBox && !(isFar && (mode === "box" || event.pointerType === "mouse"))) return;
  const [x, y] = place(event);
  Object.assign(drag, { x1: x, y1: y, isBox: true });
  draw();
});
view.addEventListener("pointerup", () => {
  if (!drag) return;
  const done = drag; drag = null;
  const [x0, x1] = [done.x0, done.x1].sort((a, b) => a - b), [y0, y1] = [done.y0, done.y1].sort((a, b) => a - b);
  if (done.isBox && x1 - x0 > 2 && y1 - y0 > 2) { leaveWhole(); box = [x0, y0, x1, y1]; points = []; segment(); }
  else if (mode === "box") { draw(); say("Drag a box around the object."); }
  else addPoint(done.x0, done.y0, mode === "add" ? 1 : 0);
});
view.addEventListener("pointercancel", () => { drag = null; draw(); });
view.addEventListener("pointerleave", () => { if (!drag) pick(-1); });
view.addEventListener("contextmenu", (event) => {
  event.preventDefault();
  if (image) addPoint(...place(event), 0);
});

function addPoint(x, y, good) {
  leaveWhole();
  if (points.length >= 16) { say("At most 16 clicks on one object.", true); return; }
  points.push([x, y, good]);
  draw(); segment();
}

function leaveWhole() { if (answer?.kind === "whole") { answer = null; picked = -1; } }

function pickAt(x, y) {
  const { values, width, height } = answer.map;
  const column = Math.min(width - 1, Math.floor(x / image.width * width)), row = Math.min(height - 1, Math.floor(y / image.height * height));
  pick(values[row * width + column] - 1);
}

const actions = {
  undo() {
    if (answer?.kind === "whole") { reset(); draw(); showResult(); say("Click on something."); }
    else if (points.length) { points.pop(); segment(); }
    else if (box) { box = null; segment(); }
    else { kept.pop(); draw(); showResult(); }
  },
  clear() { reset(); kept = []; draw(); showResult(); say("Click on something."); },
  keep() {
    const i = Math.min(level, answer.masks.length) - 1;
    kept.push({ mask: answer.masks[i], level: i + 1, map: answer.map, bit: i, colour: colourOf(kept.length) });
    reset(); draw(); showResult(); say(`${kept.length} kept. Click on the next object.`);
  },
  close() {
    request("forget", { image: image.key }).catch(() => {});
    image = null; reset(); kept = []; stage.dataset.state = "empty"; showResult(); say("");
  },
};
element.querySelectorAll("[data-do]").forEach((button) => { button.onclick = () => actions[button.dataset.do](); });
element.querySelectorAll("[data-mode]").forEach((button) => {
  button.onclick = () => {
    mode = button.dataset.mode;
    element.querySelectorAll("[data-mode]").forEach((b) => b.setAttribute("aria-checked", String(b === button)));
    view.style.touchAction = mode === "box" ? "none" : "pan-y";
  };
});
view.addEventListener("keydown", (event) => {
  if (!image || event.ctrlKey || event.metaKey) return;
  const key = event.key.toLowerCase();
  if (key >= "1" && key <= "6") { level = Number(key); trigger("level"); changeLevel(); }
  else if (key === "z" && !$("[data-do=undo]").disabled) actions.undo();
  else if (key === "k" && !$("[data-do=keep]").disabled) actions.keep();
  else if (key === "escape") actions.clear();
});

$(".ss-choose").onclick = () => fileInput.click();
fileInput.onchange = () => { const file = fileInput.files[0]; fileInput.value = ""; if (file) open(file, file.name); };
element.querySelectorAll(".ss-example").forEach((button) => {
  button.onclick = () => guarded(async () => {
    const response = await fetch(`examples/${button.dataset.example}.jpg`);
    await open(await response.blob(), `example_${Number(button.dataset.example) + 1}.jpg`);
  });
});
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  window.addEventListener(name, (event) => {
    event.preventDefault();
    stage.classList.toggle("ss-over", name === "dragenter" || name === "dragover");
    const file = name === "drop" && event.dataTransfer.files[0];
    if (file) open(file, file.name);
  });
}
window.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files || [])].find((f) => f.type.startsWith("image/"));
  if (file) open(file, "pasted.png");
});
window.addEventListener("pagehide", () => {
  if (image) navigator.sendBeacon("api/forget", JSON.stringify({ image: image.key }));
});
new ResizeObserver(() => draw()).observe(frame);

window.semsam = {
  level: () => level,
  setLevel(value) { level = value; changeLevel(); },
  setNames(value) {
    if (value.trim() === names) return;
    names = value.trim();
    if (answer?.kind === "click") segment();
  },
  everything(value, grid, quality, isAll) {
    names = value.trim();
    whole("everything", { grid, quality, level: isAll ? 0 : level }, "masks");
  },
  panoptic(value) { names = value.trim(); whole("panoptic", {}, "segments"); },
  download: (kind) => guarded(async () => {
    const current = !answer ? [] : kept.length && answer.kind === "click" ? [answer.masks[level - 1]] : answer.masks;
    const masks = [...kept.map((one) => one.mask), ...current].map((mask) => mask.number);
    if (!image || !masks.length) { say("There are no masks yet. Click on something first.", true); return; }
    const response = await request("download", { image: image.key, kind, masks, file_name: image.name });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await response.blob());
    link.download = /filename="([^"]+)"/.exec(response.headers.get("content-disposition"))[1];
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say(`${link.download}: ${masks.length} masks.`);
  }),
};
stage.dataset.ready = "yes";
