// The parts of the page that every module speaks to: elements, the status line, the view.
import { View } from "./view.js";

export const $ = (selector) => document.querySelector(selector);
export const app = $("#app"), canvas = $("#view"), frame = $("#frame"), view = new View(canvas, frame);

export function say(text, isError = false) {
  $("#status").textContent = text;
  $("#status").classList.toggle("error", isError);
}
// What goes wrong becomes a sentence in the status line.
export async function guarded(work) { try { await work(); } catch (error) { say(error.message, true); } }

export const seconds = (x) => (x < 0.0995 ? `${Math.max(1, Math.round(1000 * x))} ms` : `${x.toFixed(2)} s`);
