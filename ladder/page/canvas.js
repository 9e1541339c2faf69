/** Canvases that are as sharp as the screen, in the colours of the style sheet. */

/** @type {Map<string, string>} */
const colours = new Map();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  colours.clear();
  for (const canvas of document.querySelectorAll("canvas")) canvas.dispatchEvent(new Event("recoloured"));
});

/**
 * A colour of the style sheet, light or dark as the page is.
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

/** A canvas that knows its size without asking the layout for it in every frame. */
export class Sheet {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this.width = 0;
    this.height = 0;
    this.resized = () => {}; // what is to be drawn again, in another size or in other colours
    this.observer = new ResizeObserver(([entry]) => {
      this.width = entry.contentRect.width;
      this.height = entry.contentRect.height;
      canvas.width = Math.round(this.width * devicePixelRatio);
      canvas.height = Math.round(this.height * devicePixelRatio);
      this.resized();
    });
    this.observer.observe(canvas);
    canvas.addEventListener("recoloured", () => this.resized());
  }

  /** An empty sheet, measured in CSS pixels. */
  clear() {
    this.context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    this.context.clearRect(0, 0, this.width, this.height);
    return this.context;
  }
}
