// The image: opened, sent to the server, asked about, closed.
import { loadImage } from "./masks.js";
import { request } from "./net.js";
import { app, guarded, say, seconds, view } from "./page.js";
import { show, showPanel } from "./panel.js";
import { CLICK, dropPrompt, forget, newTurn, state } from "./state.js";

export const open = (file, name) => guarded(async () => {
  if (!leaveKept()) return;
  say("Sending the image …");
  const old = state.image, found = await send(file);
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

export function close() {
  if (!leaveKept()) return;
  request("forget", { image: state.image.key }).catch(() => {});
  startAgain(); state.image = null; app.dataset.state = "empty";
  showPanel(); say("");
}

const send = async (file) => (await request("image", file, { isRaw: true })).json();
const leaveKept = () => state.isSaved || !state.kept.length
  || confirm(`Kept masks of this image that are not downloaded: ${state.kept.length}. Leave them?`);
function startAgain() { newTurn(); dropPrompt(); forget(); Object.assign(state, { kept: [], selected: null, isSaved: true, unknown: [] }); }

// Asks about the image; if the server has put it away in the meantime, sends it once more.
export async function ask(path, body, options = {}) {
  try {
    return await request(path, { image: state.image.key, ...body }, options);
  } catch (error) {
    if (!error.isGone) throw error;
    await resend();
    return request(path, { image: state.image.key, ...body }, options);
  }
}

// Numbers of masks belong to the image as it was sent: from now on the old ones mean nothing.
export async function resend() { state.image.key = (await send(state.image.file)).image; }
