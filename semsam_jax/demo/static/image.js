// The image: opened, sent to the server, asked about, closed.
import { loadImage } from "./masks.js";
import { request } from "./net.js";
import { app, guarded, say, seconds, view } from "./page.js";
import { show, showPanel } from "./panel.js";
import { CLICK, dropPrompt, forget, newTurn, state, unsaved } from "./state.js";

let opens = 0;  // however many are under way, the latest is shown

// Opens a file, or a promise of one.
export const open = (file, name) => guarded(async () => {
  if (!leaveKept()) return;
  const number = ++opens, agreed = unsaved(), isLatest = () => number === opens;
  try { await sendAndShow(file, name, agreed, isLatest); } catch (error) { if (isLatest()) throw error; }
});

async function sendAndShow(wanted, name, agreed, isLatest) {
  say("Sending the image …");
  const file = await wanted;
  if (!isLatest()) return;
  const found = await send(file), element = await loadImage(found.view);
  // Masks may have been kept in the meantime.
  if (!isLatest() || !leaveKept(agreed)) {
    letGo(found.image);
    if (isLatest()) say(`${name} was not opened.`);
    return;
  }
  if (state.image) letGo(state.image.key);
  state.image = { key: found.image, width: found.width, height: found.height, file, name, element };
  startAgain();
  app.dataset.state = "image";
  view.setImage(found.width, found.height);
  show();
  say("Looking at the image …");
  const encoded = await ask("encode", {});
  if (isLatest()) say(`Ready: image encoded in ${seconds(encoded.encode_sec)}. ${CLICK}`);
}

export function close() {
  if (!leaveKept()) return;
  opens++; letGo(state.image.key);
  startAgain(); state.image = null; app.dataset.state = "empty";
  showPanel(); say("");
}

const send = async (file) => (await request("image", file, { isRaw: true })).json();
export function letGo(key) { request("forget", { image: key }).catch(() => {}); }
function leaveKept(agreed = []) {
  const rows = unsaved();
  return rows.every((one) => agreed.includes(one)) || confirm(`Kept masks of this image that are not downloaded: ${rows.length}. Leave them?`);
}
function startAgain() { newTurn(); dropPrompt(); forget(); Object.assign(state, { kept: [], selected: null, unknown: [] }); }

// Asks about an image; if the server has put it away in the meantime, sends it once more. Numbers of
// masks belong to the image as it was sent, so the answer has the `key` under which they are known.
export async function ask(path, body, { isQuiet = false, image = state.image } = {}) {
  let { key } = image;
  const answer = async () => ({ ...await (await request(path, { image: key, ...body }, { isQuiet })).json(), key });
  try {
    return await answer();
  } catch (error) {
    if (!error.isGone) throw error;
    key = await resend(image, key);
    return answer();
  }
}

// Sends an image that is gone under a key once more, however many ask for it; returns its new key.
export async function resend(image, goneKey) {
  if (image.key === goneKey) {
    image.sending ??= send(image.file).then((found) => { image.key = found.image; }).finally(() => { image.sending = null; });
    await image.sending;
  }
  return image.key;
}
