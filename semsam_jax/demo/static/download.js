// Files of what is kept or shown: made by the server, the cut-out here.
import { ask, resend } from "./image.js";
import { FORGOTTEN, store } from "./kept.js";
import { cutBits, fillCanvas, loadValues, newCanvas } from "./masks.js";
import { request, save } from "./net.js";
import { guarded, say } from "./page.js";
import { markSaved, state, wanted } from "./state.js";

export const download = (kind) => guarded(async () => {
  const { rows, text } = wanted();
  if (!rows.length) { say("There are no masks yet. Click on something first.", true); return; }
  const [name, blob] = kind === "cutout" ? await cutOut(rows) : await made(kind, rows);
  save(blob, name);
  markSaved(rows);
  say(`${name}: ${text}.`);
});

async function made(kind, rows) {
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
  return [/filename="([^"]+)"/.exec(response.headers.get("content-disposition"))[1], await response.blob()];
}

// The pixels of the file inside the masks, with the rest transparent; at the file's size.
async function cutOut(rows) {
  const picture = await createImageBitmap(state.image.file, { imageOrientation: "from-image" });
  const masks = newCanvas(state.image.width, state.image.height), context = masks.getContext("2d");
  for (const one of rows) {
    const bits = one.bits ?? await fetchBits(one.number);
    if (bits.w) context.drawImage(fillCanvas(bits, [0, 0, 0], 1, false), bits.x, bits.y);
  }
  const out = newCanvas(picture.width, picture.height), paper = out.getContext("2d");
  paper.drawImage(picture, 0, 0);
  paper.globalCompositeOperation = "destination-in";
  paper.drawImage(masks, 0, 0, picture.width, picture.height);
  const blob = await new Promise((resolve) => out.toBlob(resolve, "image/png"));
  if (!blob) throw new Error("The image is too large for a cut-out.");
  return [`${state.image.name.replace(/\.[^.]*$/, "") || "image"}_cutout.png`, blob];
}

async function fetchBits(number) {
  const { masks } = await (await ask("masks", { masks: [number] })).json();
  return cutBits(await loadValues(masks[0].picture), (v) => v > 127);
}
