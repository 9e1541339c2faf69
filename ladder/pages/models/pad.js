/** A pad to draw a digit on, and its conversion into a model's input: 8×8 pixels from 0 to 16. */

import { colour, Sheet } from "../shared/canvas.js";

const SIDE = 8;
const FINE = 32; // the data set's digits had 32×32 pixels, which were then counted in blocks of 4×4
const MARGIN = 1.5;
const PEN = 3.4;

/** @typedef {{x: number, y: number}} Point */

export class Pad {
  /**
   * @param {HTMLCanvasElement} canvas to draw on with mouse, pen or finger
   * @param {HTMLCanvasElement} preview shows the model's input
   * @param {(features: number[]) => void} onChange
   */
  constructor(canvas, preview, onChange) {
    this.sheet = new Sheet(canvas);
    this.preview = new Sheet(preview);
    this.onChange = onChange;
    /** @type {Point[][]} */ this.strokes = [];
    /** @type {number[]} */ this.features = new Array(SIDE * SIDE).fill(0);
    const fine = new OffscreenCanvas(FINE, FINE);
    this.fine = /** @type {OffscreenCanvasRenderingContext2D} */ (fine.getContext("2d", { willReadFrequently: true }));
    this.sheet.redraw = this.preview.redraw = () => this.draw();
    canvas.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary || event.button) return; // a second finger, or the menu button
      canvas.setPointerCapture(event.pointerId);
      this.strokes.push([]);
      this.add(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (canvas.hasPointerCapture(event.pointerId)) for (const part of coalesced(event)) this.add(part);
    });
  }

  /** @param {PointerEvent} event */
  add(event) {
    const { width, height } = this.sheet;
    this.strokes[this.strokes.length - 1].push({ x: event.offsetX / width, y: event.offsetY / height });
    this.features = this.toFeatures();
    this.changed();
  }

  clear() {
    this.strokes = [];
    this.features.fill(0);
    this.draw();
  }

  /** Show a digit from the data set instead of a drawing. @param {number[]} features */
  show(features) {
    this.strokes = [];
    this.features = features;
    this.changed();
  }

  changed() {
    this.draw();
    this.onChange(this.features);
  }

  /** The drawing as features: centred, and scaled to the size of the data set's digits. */
  toFeatures() {
    const points = this.strokes.flat();
    const xs = points.map((point) => point.x);
    const ys = points.map((point) => point.y);
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const room = FINE - 2 * MARGIN - PEN;
    const scale = room / Math.max(right - left, bottom - top, 0.15);
    const place = (/** @type {Point} */ point) => [
      FINE / 2 + (point.x - (left + right) / 2) * scale,
      FINE / 2 + (point.y - (top + bottom) / 2) * scale,
    ];
    this.fine.clearRect(0, 0, FINE, FINE);
    drawStrokes(this.fine, this.strokes, place, PEN, "black");
    const pixels = this.fine.getImageData(0, 0, FINE, FINE).data;
    const features = new Array(SIDE * SIDE).fill(0);
    for (let y = 0; y < FINE; y++) {
      for (let x = 0; x < FINE; x++) {
        const block = SIDE * Math.floor((SIDE * y) / FINE) + Math.floor((SIDE * x) / FINE);
        if (pixels[4 * (FINE * y + x) + 3] > 127) features[block] += 1;
      }
    }
    return features;
  }

  draw() {
    const context = this.sheet.clear();
    const { width, height } = this.sheet;
    if (this.strokes.length) {
      drawStrokes(context, this.strokes, ({ x, y }) => [x * width, y * height], width / 14, colour("ink"));
    } else {
      drawPixels(context, this.features, width);
    }
    drawPixels(this.preview.clear(), this.features, this.preview.width);
  }
}

/** All moves of the pointer: browsers combine those between two frames into one event. @param {PointerEvent} event */
function coalesced(event) {
  const parts = event.getCoalescedEvents?.() ?? [];
  return parts.length ? parts : [event];
}

/**
 * @param {CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D} context
 * @param {Point[][]} strokes
 * @param {(point: Point) => number[]} place
 * @param {number} pen
 * @param {string} style
 */
function drawStrokes(context, strokes, place, pen, style) {
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = pen;
  context.strokeStyle = style;
  for (const stroke of strokes) {
    context.beginPath();
    const [x, y] = place(stroke[0]);
    context.moveTo(x, y);
    for (const point of stroke) {
      const [x, y] = place(point);
      context.lineTo(x, y);
    }
    context.stroke();
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {number[]} features
 * @param {number} width
 */
function drawPixels(context, features, width) {
  const size = width / SIDE;
  context.fillStyle = colour("ink");
  features.forEach((value, place) => {
    context.globalAlpha = value / 16;
    context.fillRect((place % SIDE) * size, Math.floor(place / SIDE) * size, size + 0.5, size + 0.5);
  });
  context.globalAlpha = 1;
}
