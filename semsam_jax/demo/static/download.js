// Files of what is kept or shown: made by the server, the cut-out here.
import { hex } from "./draw.js";
import { letGo, resend } from "./image.js";
import { fetchBits, FORGOTTEN, store } from "./kept.js";
import { fillCanvas, newCanvas } from "./masks.js";
import { request, save } from "./net.js";
import { guarded, say } from "./page.js";
import { markSaved, state, sureName, wanted } from "./state.js";

const FORGETS = "The server forgets this image again and again. Close other pages with images, then try again.";

export const download = (kind) => guarded(async () => {
  const { rows, text } = wanted(), { image } = state;
  if (!rows.length) { say("There are no masks yet. Click on something first.", true); return; }
  const [name, blob] = kind === "cutout" ? await cutOut(rows, image) : await made(kind, rows, image);
  save(blob, name);
  markSaved(rows);
  say(`${name}: ${text}.`);
});

// A file of masks of an image, even if another one is opened meanwhile.
async function made(kind, rows, image) {
  const isKnown = (one) => one.number !== null && one.key === image.key;
  let key;
  const send = async () => {
    // The image may be sent once more for any of them, after which those before are unknown.
    for (let turn = 0; turn < 3 && !rows.every(isKnown); turn++) {
      for (const one of rows) if (!isKnown(one)) await teach(one, image);
    }
    if (!rows.every(isKnown)) throw new Error(FORGETS);
    ({ key } = image);
    const colour = (one) => (kind === "overlay" ? { colour: hex(one.colour) } : {});
    const masks = rows.map((one) => ({ number: one.number, ...("name" in one ? { name: one.name } : {}), ...colour(one) }));
    return request("download", { image: key, kind, masks, file_name: image.name });
  };
  let response;
  try {
    response = await send();
  } catch (error) {
    if (error.status !== 410) throw error;
    // The server has forgotten the image or some of its masks: the page has not.
    if (error.isGone) await resend(image, key); else for (const one of rows) one.key = null;
    response = await send();
  }
  if (image !== state.image) letGo(image.key);
  return [/filename="([^"]+)"/.exec(response.headers.get("content-disposition"))[1], await response.blob()];
}

// The server learns a mask with the name that it had found for it.
async function teach(one, image) {
  if (!one.bits) throw new Error(FORGOTTEN);
  Object.assign(one, { name: one.name ?? sureName(one), ...await store(one, image) });
}

// The pixels of the file inside the masks, with the rest transparent; at the file's size.
async function cutOut(rows, image) {
  const picture = await createImageBitmap(image.file, { imageOrientation: "from-image" });
  const masks = newCanvas(image.width, image.height), context = masks.getContext("2d");
  for (const one of rows) {
    const bits = one.bits ?? (await fetchBits(one.key, [one]))[0];
    if (bits.w) context.drawImage(fillCanvas(bits, [0, 0, 0], 1, false), bits.x, bits.y);
  }
  const out = newCanvas(picture.width, picture.height), paper = out.getContext("2d");
  paper.drawImage(picture, 0, 0);
  paper.globalCompositeOperation = "destination-in";
  paper.drawImage(masks, 0, 0, picture.width, picture.height);
  const blob = await new Promise((resolve) => out.toBlob(resolve, "image/png"));
  if (!blob) throw new Error("The image is too large for a cut-out.");
  return [`${image.name.replace(/\.[^.]*$/, "") || "image"}_cutout.png`, blob];
}
