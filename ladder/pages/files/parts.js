/** Fetch a file in parallel parts, join them, and compare the result with the whole file. */

import { colour, Sheet } from "../shared/canvas.js";
import { bytes } from "../shared/format.js";
import { CAN_HASH, sha256 } from "./hash.js";

/** Draws which parts of a file have arrived. */
export class PartsMap {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.sheet = new Sheet(canvas);
    this.sheet.redraw = () => this.draw();
    /** @type {{from: number, to: number}[]} */ this.parts = [];
  }

  clear() {
    this.parts = [];
    this.draw();
  }

  /** @param {number} from @param {number} to as fractions of the file */
  add(from, to) {
    this.parts.push({ from, to });
    this.draw();
  }

  draw() {
    const context = this.sheet.clear();
    context.fillStyle = colour("token");
    for (const { from, to } of this.parts) {
      context.fillRect(from * this.sheet.width + 0.5, 0, (to - from) * this.sheet.width - 1, this.sheet.height);
    }
  }
}

/**
 * @param {string} url
 * @param {number} count
 * @param {PartsMap} map
 * @param {AbortSignal} signal
 */
export async function fetchInParts(url, count, map, signal) {
  const head = await fetch(url, { method: "HEAD", cache: "no-store", signal });
  const size = Number(head.headers.get("content-length"));
  const tag = head.headers.get("etag") ?? "";
  const borders = Array.from({ length: count + 1 }, (_, number) => Math.floor((number * size) / count));
  const parts = await Promise.all(
    borders.slice(1).map(async (to, number) => {
      const from = borders[number];
      if (from === to) return new ArrayBuffer(0);
      const headers = { range: `bytes=${from}-${to - 1}`, "if-range": tag };
      const response = await fetch(url, { headers, cache: "no-store", signal });
      if (response.status !== 206) throw new Error(`the status of a part is ${response.status}, not 206`);
      const part = await response.arrayBuffer();
      signal.throwIfAborted();
      map.add(from / size, to / size);
      return part;
    }),
  );
  const joined = await new Blob(parts).arrayBuffer();
  if (!CAN_HASH) return `${count} parts, ${bytes(joined.byteLength)} in total.`;
  const whole = await (await fetch(url, { cache: "no-store", signal })).arrayBuffer();
  const hashes = await Promise.all([sha256(joined), sha256(whole)]);
  const same = hashes[0] === hashes[1] ? "Same SHA-256 as the whole file" : "NOT equal to the whole file";
  return `${count} parts, ${bytes(joined.byteLength)} in total. ${same}: ${hashes[0].slice(0, 16)}…`;
}
