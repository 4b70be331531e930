// What the pointer is doing at this moment; nothing here is undone or stored.
import { $ } from "./page.js";
import { state } from "./state.js";

export const hand = {
  drag: null,      // of the button or finger that is down: {x0, y0, x1, y1, isBox, isFar, isPan, ...}
  cursor: null,    // [x, y], pixels of the image
  painted: null,   // the mask under the brush: {id, map, x, y, bits(), touch()}
  pointed: null,   // id of the kept mask whose row is pointed at
  isSpace: false,  // the space bar is down: a drag moves the image
};

export const isPainting = () => state.mode === "brush" || state.mode === "eraser";
export const brushSize = () => Number($("#brush").value);
