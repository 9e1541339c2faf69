/** The time axis that all lanes share, and each lane's bar on it. */

import { colour, Sheet } from "../shared/canvas.js";

/**
 * What a lane's bar shows. Times are milliseconds since the start of the run.
 * @typedef {{sent: number | null, tokens: number[], whole: boolean, ended: number | null, state: string}} Course
 */

const BAR = 14; // pixels
const ENDS = [250, 500, 1000, 2000, 3000, 5000, 8000, 12_000, 20_000, 30_000, 60_000];
const STEPS = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000];

/**
 * How much time the axis shows. It grows in steps, so that the bars do not move all the time.
 * @param {number} elapsed
 */
export function axisEnd(elapsed) {
  const end = ENDS.find((candidate) => elapsed < candidate * 0.97);
  return end ?? Math.ceil(elapsed / 48_000) * 60_000;
}

/** @param {number} milliseconds */
function label(milliseconds) {
  return milliseconds < 1000 ? `${milliseconds} ms` : `${milliseconds / 1000} s`;
}

/**
 * @param {number} end
 * @param {number} width
 * @returns {number[]}
 */
function marks(end, width) {
  const most = Math.max(2, Math.floor(width / 72));
  const step = STEPS.find((candidate) => end / candidate <= most) ?? end;
  return Array.from({ length: Math.floor(end / step + 1e-9) + 1 }, (_, number) => number * step);
}

/**
 * @param {Sheet} sheet
 * @param {number} end
 */
export function drawAxis(sheet, end) {
  const context = sheet.clear();
  context.fillStyle = colour("muted");
  context.font = `11px ${getComputedStyle(sheet.canvas).fontFamily}`;
  context.textBaseline = "bottom";
  for (const mark of marks(end, sheet.width)) {
    const x = (mark / end) * sheet.width;
    const text = label(mark);
    const width = context.measureText(text).width;
    const left = Math.min(Math.max(x - width / 2, 0), sheet.width - width);
    context.fillText(text, left, sheet.height - 2);
  }
}

/**
 * @param {Sheet} sheet
 * @param {Course} course
 * @param {number} now
 * @param {number} end
 */
export function drawCourse(sheet, course, now, end) {
  const context = sheet.clear();
  const { width, height } = sheet;
  const x = (/** @type {number} */ time) => (time / end) * width;
  context.fillStyle = colour("grid");
  for (const mark of marks(end, width)) context.fillRect(Math.round(x(mark)), 0, 1, height);

  const until = course.ended ?? now;
  if (course.sent === null) {
    drawNotSent(context, x(until), height);
    return;
  }
  const first = course.tokens[0] ?? until;
  drawNotSent(context, x(course.sent), height);
  drawWaiting(context, x(course.sent), x(first), height);
  if (course.tokens.length) drawTokens(context, course, x, height);
  if (course.ended !== null) drawEnd(context, course.state, x(course.ended), height);
}

/**
 * A dotted line while the page has not sent the request yet.
 * @param {CanvasRenderingContext2D} context
 * @param {number} to
 * @param {number} height
 */
function drawNotSent(context, to, height) {
  if (to < 1) return;
  context.fillStyle = colour("muted");
  for (let left = 2; left < to - 2; left += 6) context.fillRect(left, height / 2 - 0.5, 2, 1);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {number} from
 * @param {number} to
 * @param {number} height
 */
function drawWaiting(context, from, to, height) {
  const top = (height - BAR) / 2;
  const width = Math.max(to - from, 1);
  context.fillStyle = colour("waiting");
  context.fillRect(from, top, width, BAR);
  context.save();
  context.beginPath();
  context.rect(from, top, width, BAR);
  context.clip();
  context.strokeStyle = colour("waiting-line");
  context.lineWidth = 1;
  context.beginPath();
  // The stripes start at the left edge of the axis, so they do not move while the bar grows.
  for (let left = Math.floor(from / 6) * 6 - 18; left < to; left += 6) {
    context.moveTo(left, top + BAR);
    context.lineTo(left + BAR, top);
  }
  context.stroke();
  context.restore();
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Course} course
 * @param {(time: number) => number} x
 * @param {number} height
 */
function drawTokens(context, course, x, height) {
  const top = (height - BAR) / 2;
  const [first] = course.tokens;
  const last = course.tokens[course.tokens.length - 1];
  context.fillStyle = colour("token-soft");
  context.fillRect(x(first), top, x(last) - x(first), BAR);
  context.fillStyle = colour("token");
  let drawn = -1;
  for (const time of course.tokens) {
    const at = Math.round(x(time));
    if (at === drawn) continue; // one line per pixel is enough, however many tokens it stands for
    context.fillRect(at, top, 1, BAR);
    drawn = at;
  }
  context.fillStyle = colour(course.whole ? "token" : "first");
  context.fillRect(x(first) - 1.5, 1, course.whole ? 6 : 3, height - 2);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {string} state
 * @param {number} at
 * @param {number} height
 */
function drawEnd(context, state, at, height) {
  if (state === "done") return;
  context.strokeStyle = colour(state === "failed" ? "lost" : "ink");
  context.lineWidth = 2;
  const [middle, reach] = [height / 2, 4];
  const centre = at + reach + 3;
  context.beginPath();
  context.moveTo(centre - reach, middle - reach);
  context.lineTo(centre + reach, middle + reach);
  context.moveTo(centre + reach, middle - reach);
  context.lineTo(centre - reach, middle + reach);
  context.stroke();
}
