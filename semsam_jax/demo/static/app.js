// The start: the page asks what the server offers, and listens.
import { replaceName, setNames } from "./clicks.js";
import { download } from "./download.js";
import { brushSize } from "./hand.js";
import { open } from "./image.js";
import { listenToKeys } from "./keyboard.js";
import { clearAll, move, point, remove, select } from "./kept.js";
import { listenToSlider, pickLevel } from "./levels.js";
import { getInfo, isBusy, onBusy } from "./net.js";
import { $, app, frame, guarded } from "./page.js";
import { listenToPanel, showPanel, showStops } from "./panel.js";
import { draw } from "./picture.js";
import { listenToPointers } from "./pointer.js";
import { state, unsaved } from "./state.js";
import { listenToTools } from "./tools.js";
import { findEverything, findPanoptic, findTree, keepAll, keepFound, pick } from "./whole.js";

listenToTools();
listenToPointers();
listenToKeys();
listenToSlider();
listenToPanel({ pickLevel, pick, keepFound, keepAll, select, point, move, remove, replaceName });
onBusy.change = () => { frame.classList.toggle("waiting", isBusy()); app.toggleAttribute("data-busy", isBusy()); };
new ResizeObserver(() => draw()).observe(frame);

document.querySelectorAll("[data-get]").forEach((button) => { button.onclick = () => download(button.dataset.get); });
$("#help").onclick = () => $("#keys").showModal();
$("#clear-all").onclick = clearAll;
$("#names").onchange = () => setNames($("#names").value);
$("#everything").onclick = findEverything;
$("#tree").onclick = findTree;
$("#panoptic").onclick = findPanoptic;
$("#brush").oninput = () => { $("#brush-value").textContent = `${brushSize()} px`; draw(); };
const showMinScore = () => { $("#min-score-value").textContent = Number($("#min-score").value).toFixed(2); };
$("#min-score").oninput = () => { state.isScoreMoved = true; showMinScore(); };

// ---- images come and go

$("#choose").onclick = () => $("#file").click();
$("#file").onchange = () => { const file = $("#file").files[0]; $("#file").value = ""; if (file) open(file, file.name); };
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  window.addEventListener(name, (event) => {
    if (event.dataTransfer?.types.includes("text/x-kept")) return;  // a row of the list
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
window.addEventListener("beforeunload", (event) => { if (unsaved().length) event.preventDefault(); });
window.addEventListener("pagehide", () => { if (state.image) navigator.sendBeacon("api/forget", JSON.stringify({ image: state.image.key })); });

function showExamples(number) {
  $("#examples").replaceChildren(...Array.from({ length: number }, (_, i) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "example" });
    button.setAttribute("aria-label", `example image ${i + 1}`);
    button.append(Object.assign(new Image(), { src: `examples/${i}.jpg`, alt: "" }));
    button.onclick = () => open(fetch(`examples/${i}.jpg`).then((r) => r.blob()), `example_${i + 1}.jpg`);
    return button;
  }));
}

guarded(async () => {
  const info = state.info = await getInfo();
  $("#model").textContent = info.model;
  showStops();
  $("#names").disabled = !info.knows_names;
  if (!info.knows_names) $("#names").placeholder = "this model gives no names";
  $("#panoptic").disabled = !info.has_panoptic;
  $("#min-score").value = info.min_score; showMinScore();
  $("#grid").replaceChildren(...info.grids.map((n) => new Option(`${n} × ${n} clicks`, n, n === 16, n === 16)));
  showExamples(info.examples);
  showPanel();
  app.dataset.ready = "yes";
});
