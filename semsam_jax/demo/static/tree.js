// Walking in a tree of masks: a mask knows its parent, parents come first.
const STEP = 40;  // pixels of the wheel; a trackpad sends many small ones
let turned = 0;

// A mask and all masks that it is inside, the smallest first.
export function pathUp(masks, i) {
  const path = [];
  for (let at = i; at !== null && at >= 0; at = masks[at].parent) path.push(at);
  return path;
}

// The mask around the smallest one of a place that is so deep, or the smallest one.
export function atDepth(masks, i, depth) {
  const path = pathUp(masks, i);
  return i < 0 ? i : path[Math.max(0, path.length - 1 - depth)];
}

// The depth after the wheel has turned: away from the visitor up to the whole, else to the parts.
export function turnedDepth(masks, i, depth, delta) {
  turned += delta;
  if (i < 0 || Math.abs(turned) < STEP) return depth;
  const now = masks[atDepth(masks, i, depth)].depth + Math.sign(turned);
  turned = 0;
  return Math.min(masks[i].depth, Math.max(0, now));
}
