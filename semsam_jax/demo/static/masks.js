// Masks as bitmaps: out of the grey pictures of the server, cut to their boxes, and back.
export function loadImage(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("The image could not be read."));
    image.src = url;
  });
}

// Values of a grey PNG, one byte for each pixel.
export async function loadValues(url) {
  const image = await loadImage(url);
  const canvas = newCanvas(image.width, image.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const rgba = context.getImageData(0, 0, image.width, image.height).data;
  const values = new Uint8Array(image.width * image.height);
  for (let i = 0; i < values.length; i++) values[i] = rgba[4 * i];
  return { values, width: image.width, height: image.height };
}

export function newCanvas(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

// The pixels of a map that belong to a mask, cut to their box: {x, y, w, h, data, width, height}.
export function cutBits(map, isInside) {
  const { values, width, height } = map;
  let x0 = width, y0 = height, x1 = -1, y1 = -1;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!isInside(values[i])) continue;
      if (x < x0) x0 = x; if (x > x1) x1 = x; if (y < y0) y0 = y; if (y > y1) y1 = y;
    }
  }
  if (x1 < 0) return { x: 0, y: 0, w: 0, h: 0, data: new Uint8Array(0), width, height };
  const w = x1 - x0 + 1, h = y1 - y0 + 1, data = new Uint8Array(w * h);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) data[y * w + x] = isInside(values[(y + y0) * width + x + x0]) ? 1 : 0;
  }
  return { x: x0, y: y0, w, h, data, width, height };
}

export const hasBit = (bits, x, y) => {
  const column = Math.floor(x) - bits.x, row = Math.floor(y) - bits.y;
  return column >= 0 && row >= 0 && column < bits.w && row < bits.h && bits.data[row * bits.w + column] === 1;
};

export const isSame = (a, b) => a.x === b.x && a.y === b.y && a.w === b.w && a.h === b.h && a.data.every((v, i) => v === b.data[i]);

// All pixels of the image, one byte each; for painting.
export function wholeMap(bits) {
  const values = new Uint8Array(bits.width * bits.height);
  for (let y = 0; y < bits.h; y++) values.set(bits.data.subarray(y * bits.w, (y + 1) * bits.w), (y + bits.y) * bits.width + bits.x);
  return { values, width: bits.width, height: bits.height };
}

export function paintLine(map, x0, y0, x1, y1, radius, value) {
  const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / Math.max(1, radius / 2)));
  for (let s = 0; s <= steps; s++) {
    const cx = x0 + (x1 - x0) * s / steps, cy = y0 + (y1 - y0) * s / steps;
    for (let y = Math.max(0, Math.floor(cy - radius)); y <= Math.min(map.height - 1, cy + radius); y++) {
      for (let x = Math.max(0, Math.floor(cx - radius)); x <= Math.min(map.width - 1, cx + radius); x++) {
        if ((x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2 <= radius * radius) map.values[y * map.width + x] = value;
      }
    }
  }
}

// White on black, as the server reads an edited mask.
export function bitsUrl(bits) {
  const canvas = newCanvas(bits.width, bits.height), context = canvas.getContext("2d");
  context.fillStyle = "#000"; context.fillRect(0, 0, bits.width, bits.height);
  if (bits.w) context.drawImage(fillCanvas(bits, [255, 255, 255], 1, false), bits.x, bits.y);
  return canvas.toDataURL("image/png");
}

// A picture of a mask, the size of its box: fill, and an opaque outline if wanted.
export function fillCanvas(bits, colour, opacity, hasEdge = true) {
  const { w, h, data } = bits, canvas = newCanvas(Math.max(1, w), Math.max(1, h)), context = canvas.getContext("2d");
  const picture = context.createImageData(Math.max(1, w), Math.max(1, h)), out = picture.data;
  for (let y = 0, i = 0; y < h; y++) {
    for (let x = 0; x < w; x++, i++) {
      if (!data[i]) continue;
      const isEdge = hasEdge && (x === 0 || y === 0 || x === w - 1 || y === h - 1 || !data[i - 1] || !data[i + 1] || !data[i - w] || !data[i + w]);
      out[4 * i] = colour[0]; out[4 * i + 1] = colour[1]; out[4 * i + 2] = colour[2];
      out[4 * i + 3] = isEdge ? 255 : Math.round(255 * opacity);
    }
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

// A picture of a map of numbered segments; colourAt(value) is [r, g, b, opacity] or null.
export function mapCanvas(map, colourAt) {
  const { values, width, height } = map, table = Array.from({ length: 256 }, (_, v) => colourAt(v));
  const canvas = newCanvas(width, height), context = canvas.getContext("2d");
  const picture = context.createImageData(width, height), out = picture.data;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const value = values[i], colour = table[value];
      if (!colour) continue;
      const isEdge = x === 0 || y === 0 || x === width - 1 || y === height - 1
        || values[i - 1] !== value || values[i + 1] !== value || values[i - width] !== value || values[i + width] !== value;
      out[4 * i] = colour[0]; out[4 * i + 1] = colour[1]; out[4 * i + 2] = colour[2];
      out[4 * i + 3] = isEdge && colour[3] > 0.2 ? 255 : Math.round(255 * colour[3]);
    }
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

// Everything outside a mask, darkened; for the small pictures of the levels.
export function shadeCanvas(bits, width, height) {
  const canvas = newCanvas(width, height), context = canvas.getContext("2d");
  context.fillStyle = "rgba(12,14,20,.62)"; context.fillRect(0, 0, width, height);
  if (!bits.w) return canvas;
  const sx = width / bits.width, sy = height / bits.height;
  context.globalCompositeOperation = "destination-out";
  context.drawImage(fillCanvas(bits, [0, 0, 0], 1, false), bits.x * sx, bits.y * sy, bits.w * sx, bits.h * sy);
  return canvas;
}
