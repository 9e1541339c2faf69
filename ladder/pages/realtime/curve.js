/** A training run as two lines: loss on the left axis, accuracy on the right axis, epochs below. */

import { colour } from "../shared/canvas.js";

/** @typedef {{epoch: number, epochs: number, loss: number, accuracy: number}} Epoch */
/** @typedef {{left: number, right: number, top: number, bottom: number}} Box */

const TEXT = 11; // pixels
const GAP = 6;
const MARKS = [0, 0.5, 1]; // of the height

/** @param {import("../shared/canvas.js").Sheet} sheet @param {Epoch[]} epochs */
export function drawCurve(sheet, epochs) {
  const context = sheet.clear();
  if (!epochs.length) return;
  const box = { left: 36, right: sheet.width - 44, top: 8, bottom: sheet.height - 24 };
  const planned = epochs[0].epochs;
  const highest = Math.max(...epochs.map((one) => one.loss));
  context.font = `${TEXT}px ${getComputedStyle(sheet.canvas).fontFamily}`;
  context.textBaseline = "middle";
  drawAxes(context, box, highest);
  drawEpochs(context, box, planned);
  drawLine(context, box, planned, colour("first"), epochs.map((one) => one.loss / highest));
  drawLine(context, box, planned, colour("token"), epochs.map((one) => one.accuracy));
}

/** @param {CanvasRenderingContext2D} context @param {Box} box @param {number} highest */
function drawAxes(context, box, highest) {
  for (const mark of MARKS) {
    const y = height(box, mark);
    context.fillStyle = colour("grid");
    context.fillRect(box.left, Math.round(y), box.right - box.left, 1);
    context.fillStyle = colour("first");
    context.textAlign = "right";
    context.fillText(mark ? (mark * highest).toFixed(2) : "0", box.left - GAP, y);
    context.fillStyle = colour("token");
    context.textAlign = "left";
    context.fillText(`${100 * mark} %`, box.right + GAP, y);
  }
}

/** @param {CanvasRenderingContext2D} context @param {Box} box @param {number} planned */
function drawEpochs(context, box, planned) {
  const y = box.bottom + GAP + TEXT;
  context.fillStyle = colour("muted");
  context.textAlign = "left";
  context.fillText("epoch 1", box.left, y);
  context.textAlign = "right";
  if (planned > 1) context.fillText(String(planned), box.right, y);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Box} box
 * @param {number} planned
 * @param {string} style
 * @param {number[]} fractions of the height, one per epoch
 */
function drawLine(context, box, planned, style, shares) {
  const x = (/** @type {number} */ place) => box.left + ((box.right - box.left) * place) / Math.max(1, planned - 1);
  const last = shares.length - 1;
  context.strokeStyle = context.fillStyle = style;
  context.lineWidth = 2;
  context.beginPath();
  shares.forEach((share, place) => context.lineTo(x(place), height(box, share)));
  context.stroke();
  context.beginPath();
  context.arc(x(last), height(box, shares[last]), 3, 0, 7);
  context.fill();
}

/** @param {Box} box @param {number} share */
function height(box, share) {
  return box.bottom - (box.bottom - box.top) * share;
}
