// Drawing: pure functions of numbers and canvases, used by canvas.js.
const LEVEL_COLOURS = [[99, 102, 241], [14, 165, 233], [16, 185, 129], [234, 179, 8], [249, 115, 22], [236, 72, 153]];

function colourOf(i) {
  // Golden-angle hues: neighbours in the list never look alike.
  const hue = (i * 137.508 + 210) % 360, light = [0.56, 0.47, 0.65][i % 3], sat = [0.85, 0.7, 0.9][(i >> 1) % 3];
  const f = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (light - sat * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [f(0), f(8), f(4)];
}

const css = (c, alpha = 1) => `rgba(${c[0]},${c[1]},${c[2]},${alpha})`;

function loadImage(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("The image could not be read."));
    image.src = url;
  });
}

// Values of a grey PNG, one byte for each pixel.
async function loadValues(url) {
  const image = await loadImage(url);
  const canvas = document.createElement("canvas");
  canvas.width = image.width; canvas.height = image.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const rgba = context.getImageData(0, 0, image.width, image.height).data;
  const values = new Uint8Array(image.width * image.height);
  for (let i = 0; i < values.length; i++) values[i] = rgba[4 * i];
  return { values, width: image.width, height: image.height };
}

// A picture of masks: fill and outline where colourAt(value) is a colour [r, g, b, opacity].
function maskCanvas(map, colourAt) {
  const { values, width, height } = map;
  const table = [];
  for (let v = 0; v < 256; v++) table.push(colourAt(v));
  const canvas = document.createElement("canvas");
  canvas.width = width; canvas.height = height;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  const out = picture.data;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const colour = table[values[i]];
      if (!colour) continue;
      const same = (j) => table[values[j]] === colour || (table[values[j]] && colour.group === table[values[j]].group);
      const isEdge = x === 0 || y === 0 || x === width - 1 || y === height - 1
        || !same(i - 1) || !same(i + 1) || !same(i - width) || !same(i + width);
      const o = 4 * i;
      out[o] = colour[0]; out[o + 1] = colour[1]; out[o + 2] = colour[2];
      out[o + 3] = isEdge ? 255 : 255 * colour[3];
    }
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

// Everything outside a mask, darkened; for the small pictures of the levels.
function shadeCanvas(map, isInside) {
  return maskCanvas(map, (v) => (isInside(v) ? null : Object.assign([12, 14, 20, 0.62], { group: "out" })));
}

function fitCanvas(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const w = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const h = Math.max(1, Math.round((w * height) / width));
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  return w / width;  // canvas pixels for each pixel of the image
}

function drawMark(context, x, y, isPositive, size) {
  context.beginPath(); context.arc(x, y, size * 1.25, 0, 7); context.fillStyle = "#fff"; context.fill();
  context.beginPath(); context.arc(x, y, size, 0, 7); context.fillStyle = isPositive ? "#16a34a" : "#dc2626"; context.fill();
  context.strokeStyle = "#fff"; context.lineWidth = size / 3; context.lineCap = "round";
  context.beginPath(); context.moveTo(x - size / 2, y); context.lineTo(x + size / 2, y);
  if (isPositive) { context.moveTo(x, y - size / 2); context.lineTo(x, y + size / 2); }
  context.stroke();
}

function drawBox(context, x0, y0, x1, y1, size) {
  context.lineWidth = size / 2.2; context.strokeStyle = "rgba(0,0,0,.55)"; context.setLineDash([]);
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  context.lineWidth = size / 4; context.strokeStyle = "#fff"; context.setLineDash([size, size / 1.6]);
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  context.setLineDash([]);
}

// A name at a point; returns its box, or null if it would cover one of `taken`.
function drawName(context, text, x, y, colour, size, taken) {
  context.font = `600 ${size}px system-ui, sans-serif`;
  const pad = size * 0.45, w = context.measureText(text).width + 2 * pad, h = size * 1.6;
  const left = Math.min(Math.max(x - w / 2, 2), Math.max(2, context.canvas.width - w - 2));
  const top = Math.min(Math.max(y - h / 2, 2), Math.max(2, context.canvas.height - h - 2));
  if (taken.some((b) => left < b[2] && b[0] < left + w && top < b[3] && b[1] < top + h)) return null;
  context.beginPath(); context.roundRect(left, top, w, h, h / 3);
  context.fillStyle = "rgba(15,17,23,.86)"; context.fill();
  context.lineWidth = Math.max(1, size / 9); context.strokeStyle = css(colour); context.stroke();
  context.fillStyle = "#fff"; context.textBaseline = "middle"; context.textAlign = "left";
  context.fillText(text, left + pad, top + h / 2 + size * 0.04);
  return [left, top, left + w, top + h];
}

