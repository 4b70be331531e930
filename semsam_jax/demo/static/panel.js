// The side panel: levels, kept masks, found masks, unknown names.
import { css, colourOf, fromHex, hex, levelColour } from "./draw.js";
import { newCanvas, shadeCanvas } from "./masks.js";
import { $ } from "./page.js";
import { draw } from "./picture.js";
import { canUndo, changeKept, isEmpty, label, remember, shown, state, sureName, wanted } from "./state.js";

// What the panel's buttons do: functions of other modules.
const on = {};
export function listenToPanel(handlers) { Object.assign(on, handlers); }

const make = (tag, about = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(about)) {
    if (key in element && key !== "list") element[key] = value; else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
};

export function show() { draw(); showPanel(); }

export function showPanel() {
  showAnswer(); showKept(); showUnknown();
  const { rows, text } = wanted();
  $("#what").textContent = text;
  document.querySelectorAll("[data-get]").forEach((button) => { button.disabled = !rows.length; });
  $("[data-do=undo]").disabled = !canUndo();
  $("[data-do=drop]").disabled = !state.points.length && !state.box && !state.answer;
  $("[data-do=keep]").disabled = !shown() || isEmpty(shown().mask);
}

function showAnswer() {
  const target = $("#result"), answer = state.answer;
  $("#granularity-row").hidden = answer?.kind !== "click";
  if (!answer || !answer.masks.length) {
    delete target.dataset.of;
    target.replaceChildren(make("p", { className: "hint" }, state.kept.length ? "Click on the next object." : "The six levels of a click appear here."));
  } else if (answer.kind === "click") showStrip(target);
  else showFound(target);
}

function showStrip(target) {
  const image = state.image, answer = state.answer;
  if (target.dataset.of !== String(answer.id)) {
    target.dataset.of = answer.id;
    const buttons = answer.masks.map((mask, i) => {
      const scale = 240 / Math.max(image.width, image.height);
      const canvas = newCanvas(Math.max(1, Math.round(image.width * scale)), Math.max(1, Math.round(image.height * scale)));
      const context = canvas.getContext("2d");
      context.drawImage(image.element, 0, 0, canvas.width, canvas.height);
      context.drawImage(shadeCanvas(answer.bits(i), canvas.width, canvas.height), 0, 0);
      const text = isEmpty(mask) ? "empty" : label(mask) || `IoU ${mask.score.toFixed(2)}`;
      const number = make("b", {}, String(i + 1));
      number.style.background = css(levelColour(i + 1));
      const button = make("button", { type: "button", className: "level", "data-level": i + 1, "aria-label": `level ${i + 1}` },
        canvas, make("span", {}, number, ` ${text}`));
      button.style.setProperty("--c", css(levelColour(i + 1)));
      const names = [mask.object, mask.part].filter(Boolean).map((n) => `, ${n.name} ${n.score.toFixed(2)}`).join("");
      button.title = isEmpty(mask) ? `level ${i + 1} is empty` : `level ${i + 1}: predicted IoU ${mask.score.toFixed(2)}, ${(100 * mask.area).toFixed(1)} % of the image${names}`;
      button.onclick = () => on.pickLevel(i + 1);
      return button;
    });
    target.replaceChildren(make("div", { className: "strip" }, ...buttons));
  }
  target.querySelectorAll(".level").forEach((b, i) => b.setAttribute("aria-pressed", String(!state.between && i + 1 === state.level)));
  const value = state.between?.granularity ?? state.info.stops[state.level - 1], slider = $("#granularity");
  if (document.activeElement !== slider || !slider.matches(":active")) slider.value = value;
  $("#granularity-value").textContent = state.between ? value.toFixed(2) : `level ${state.level}`;
}

// A mark for each level where its masks lie between the smallest part and the whole.
export function showStops() {
  $("#stops").replaceChildren(...state.info.stops.map((stop, i) => {
    const mark = make("i", { title: `level ${i + 1}: ${stop.toFixed(2)}` });
    mark.style.setProperty("--c", css(levelColour(i + 1))); mark.style.setProperty("--at", 1 - stop);
    return mark;
  }));
}

function showFound(target) {
  const answer = state.answer;
  if (target.dataset.of !== String(answer.id)) {
    target.dataset.of = answer.id;
    const rows = answer.masks.map((mask, i) => {
      const dot = make("i"); dot.style.background = css(colourOf(i));
      const keep = make("button", { type: "button", className: "quiet", title: "keep this mask" }, "Keep");
      keep.onclick = () => on.keepFound(i);
      const row = make("li", { "data-index": i }, dot, make("span", { className: sureName(mask) ? "" : "unnamed" }, label(mask) || `mask ${i + 1}`),
        make("small", {}, `${answer.isTree ? `${mask.granularity.toFixed(2)} · ` : mask.level ? `level ${mask.level} · ` : ""}${mask.score.toFixed(2)}`), keep);
      row.style.setProperty("--depth", mask.depth ?? 0);
      row.onpointerenter = () => on.pick(i); row.onpointerleave = () => on.pick(-1);
      return row;
    });
    const all = make("button", { type: "button", className: "quiet" }, "Keep all");
    all.onclick = () => on.keepAll();
    target.replaceChildren(make("div", { className: "head" }, make("h3", {}, answer.isTree ? `Tree of ${answer.masks.length}` : `${answer.masks.length} found`), all), make("ol", { className: "list" }, ...rows));
  }
  target.querySelectorAll("li").forEach((row, i) => row.classList.toggle("picked", i === state.picked));
}

function showKept() {
  $("#kept").hidden = !state.kept.length;
  $("#kept-title").textContent = `${state.kept.length} kept`;
  const list = $("#kept-list"), focus = document.activeElement?.closest?.("#kept-list li")?.dataset.id;
  if (focus && list.contains(document.activeElement) && document.activeElement.matches("input[type=text]")) {
    list.querySelectorAll("li").forEach((row) => row.classList.toggle("picked", Number(row.dataset.id) === state.selected));
    return;  // somebody is typing a name
  }
  list.replaceChildren(...state.kept.map((one, i) => {
    const colour = make("input", { type: "color", value: hex(one.colour), title: "colour", "aria-label": "colour" });
    colour.oninput = () => { changeKept(one.id, { colour: fromHex(colour.value) }); draw(); };
    const name = make("input", { type: "text", value: one.name, placeholder: "name", "aria-label": "name", maxLength: 100, title: "object, or object / part" });
    name.onchange = () => { remember(); changeKept(one.id, { name: name.value.trim() }); show(); };
    name.onkeydown = (event) => { if (event.key === "Enter") name.blur(); event.stopPropagation(); };
    name.onblur = () => setTimeout(() => show(), 200);  // a button of the row may have been pressed
    const buttons = [["↑", "move up", () => on.move(i, -1), i === 0], ["↓", "move down", () => on.move(i, 1), i === state.kept.length - 1], ["✕", "delete", () => on.remove(one.id), false]]
      .map(([text, title, onclick, disabled]) => make("button", { type: "button", className: "quiet", title, "aria-label": title, onclick, disabled }, text));
    const row = make("li", { "data-id": one.id, draggable: true }, colour, name,
      make("small", {}, `${one.level ? `L${one.level} · ` : ""}${one.score.toFixed(2)}`), ...buttons);
    row.classList.toggle("picked", one.id === state.selected);
    row.onpointerdown = (event) => { if (event.target === row || event.target.tagName === "SMALL") on.select(one.id); };
    row.onpointerenter = () => on.point(one.id); row.onpointerleave = () => on.point(null);
    row.ondragstart = (event) => event.dataTransfer.setData("text/x-kept", String(i));
    row.ondragover = (event) => { if (event.dataTransfer.types.includes("text/x-kept")) event.preventDefault(); };
    row.ondrop = (event) => {
      const from = event.dataTransfer.getData("text/x-kept");
      if (from !== "") { event.preventDefault(); event.stopPropagation(); on.move(Number(from), i - Number(from)); }
    };
    return row;
  }));
}

function showUnknown() {
  $("#unknown").replaceChildren(...state.unknown.map((name) => make("p", {}, make("s", {}, name.name), " is not known",
    ...(name.nearest.length ? [", try "] : []),
    ...name.nearest.map((near) => make("button", { type: "button", className: "quiet", title: "use this name", onclick: () => on.replaceName(name.name, near) }, near)))));
}
