/** Canvases in the resolution of the screen and in the colours of the style sheet. */

/** @type {Map<string, string>} */
const colours = new Map();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  colours.clear();
  for (const canvas of document.querySelectorAll("canvas")) canvas.dispatchEvent(new Event("recoloured"));
});

/**
 * A colour of the style sheet, for the current scheme, light or dark.
 * @param {string} name
 */
export function colour(name) {
  let value = colours.get(name);
  if (!value) {
    value = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    colours.set(name, value);
  }
  return value;
}

/** A canvas that knows its size without asking for the layout in every frame. */
export class Sheet {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this.width = 0;
    this.height = 0;
    this.redraw = () => {}; // called when the size or the colours have changed
    this.observer = new ResizeObserver(([entry]) => {
      this.width = entry.contentRect.width;
      this.height = entry.contentRect.height;
      canvas.width = Math.round(this.width * devicePixelRatio);
      canvas.height = Math.round(this.height * devicePixelRatio);
      this.redraw();
    });
    this.observer.observe(canvas);
    canvas.addEventListener("recoloured", () => this.redraw());
  }

  /** Clear the canvas. Its context then measures in CSS pixels. */
  clear() {
    this.context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    this.context.clearRect(0, 0, this.width, this.height);
    return this.context;
  }
}
