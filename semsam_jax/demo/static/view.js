// The canvas as a window on the image: zoom, pan, and pointers in pixels of the image.
const TOP = 16;

export class View {
  constructor(canvas, frame) {
    this.canvas = canvas; this.frame = frame;
    this.zoom = 1; this.x = 0; this.y = 0;  // x, y: the upper left corner, pixels of the image
    this.width = 1; this.height = 1;
  }

  setImage(width, height) {
    this.width = width; this.height = height;
    this.frame.style.aspectRatio = `${width} / ${height}`;
    this.frame.style.setProperty("--image-aspect", width / height);
    this.fit();
  }

  fit() { this.zoom = 1; this.x = 0; this.y = 0; }

  // Canvas pixels for each pixel of the image; sizes the canvas to the page.
  begin() {
    const ratio = window.devicePixelRatio || 1;
    const w = Math.max(1, Math.round(this.canvas.clientWidth * ratio)), h = Math.max(1, Math.round((w * this.height) / this.width));
    if (this.canvas.width !== w || this.canvas.height !== h) { this.canvas.width = w; this.canvas.height = h; }
    this.scale = (w / this.width) * this.zoom;
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.imageSmoothingEnabled = this.scale < 6;
    return context;
  }

  toCanvas(x, y) { return [(x - this.x) * this.scale, (y - this.y) * this.scale]; }

  put(context, picture, x = 0, y = 0, w = this.width, h = this.height) {
    context.drawImage(picture, (x - this.x) * this.scale, (y - this.y) * this.scale, w * this.scale, h * this.scale);
  }

  // Pixels of the image under a pointer, within the image.
  place(event) {
    const area = this.canvas.getBoundingClientRect();
    const clip = (v, top) => Math.min(Math.max(v, 0), top);
    return [clip(this.x + (event.clientX - area.left) / area.width * this.width / this.zoom, this.width),
      clip(this.y + (event.clientY - area.top) / area.height * this.height / this.zoom, this.height)];
  }

  zoomAt(factor, x = this.x + this.width / this.zoom / 2, y = this.y + this.height / this.zoom / 2) {
    const zoom = Math.min(TOP, Math.max(1, this.zoom * factor)), share = this.zoom / zoom;
    this.x = x - (x - this.x) * share; this.y = y - (y - this.y) * share;
    this.zoom = zoom; this.clip();
  }

  pan(dx, dy) { this.x += dx; this.y += dy; this.clip(); }

  panBy(pixelsX, pixelsY) {
    const area = this.canvas.getBoundingClientRect();
    this.pan(-pixelsX / area.width * this.width / this.zoom, -pixelsY / area.height * this.height / this.zoom);
  }

  clip() {
    this.x = Math.min(Math.max(this.x, 0), this.width - this.width / this.zoom);
    this.y = Math.min(Math.max(this.y, 0), this.height - this.height / this.zoom);
  }
}
