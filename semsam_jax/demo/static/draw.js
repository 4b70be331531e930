// Drawing of marks and names, and colours: functions of numbers and a canvas.
export const LEVEL_COLOURS = [[99, 102, 241], [14, 165, 233], [16, 185, 129], [234, 179, 8], [249, 115, 22], [236, 72, 153]];
export const levelColour = (level) => LEVEL_COLOURS[(level - 1) % LEVEL_COLOURS.length];

export function colourOf(i) {
  // Golden-angle hues: neighbours in the list never look alike.
  const hue = (i * 137.508 + 210) % 360, light = [0.56, 0.47, 0.65][i % 3], sat = [0.85, 0.7, 0.9][(i >> 1) % 3];
  const f = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (light - sat * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [f(0), f(8), f(4)];
}

export const css = (c, alpha = 1) => `rgba(${c[0]},${c[1]},${c[2]},${alpha})`;
export const hex = (c) => `#${c.map((v) => v.toString(16).padStart(2, "0")).join("")}`;
export const fromHex = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));

export function drawMark(context, x, y, isPositive, size) {
  context.beginPath(); context.arc(x, y, size * 1.25, 0, 7); context.fillStyle = "#fff"; context.fill();
  context.beginPath(); context.arc(x, y, size, 0, 7); context.fillStyle = isPositive ? "#16a34a" : "#dc2626"; context.fill();
  context.strokeStyle = "#fff"; context.lineWidth = size / 3; context.lineCap = "round";
  context.beginPath(); context.moveTo(x - size / 2, y); context.lineTo(x + size / 2, y);
  if (isPositive) { context.moveTo(x, y - size / 2); context.lineTo(x, y + size / 2); }
  context.stroke();
}

export function drawBox(context, x0, y0, x1, y1, size) {
  context.lineWidth = size / 2.2; context.strokeStyle = "rgba(0,0,0,.55)"; context.setLineDash([]);
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  context.lineWidth = size / 4; context.strokeStyle = "#fff"; context.setLineDash([size, size / 1.6]);
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  context.setLineDash([]);
}

export function drawRing(context, x, y, radius) {
  for (const [width, colour] of [[3, "rgba(0,0,0,.6)"], [1.4, "#fff"]]) {
    context.beginPath(); context.arc(x, y, radius, 0, 7); context.lineWidth = width; context.strokeStyle = colour; context.stroke();
  }
}

// A name at a point; returns its box, or null if it would cover one of `taken`.
export function drawName(context, text, x, y, colour, size, taken) {
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
