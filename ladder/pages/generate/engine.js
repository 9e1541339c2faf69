/** The engine's figures in each response of /health. */

import { make, setText } from "../shared/dom.js";
import { count } from "../shared/format.js";

/** @typedef {import("../shared/client.js").Health} Health */

const WINDOW = 1000; // milliseconds over which tokens per second are measured
const MOST_SLOTS_SHOWN = 64;

export class EngineFigures {
  /** @param {HTMLElement} panel */
  constructor(panel) {
    this.panel = panel;
    /** @type {{at: number, tokens: number}[]} */ this.samples = [];
  }

  /**
   * @param {Health} health
   * @param {number} at
   */
  show(health, at) {
    this.set("running", count(health.running));
    this.set("waiting", count(health.waiting));
    this.set("steps", count(health.steps));
    this.set("speed", count(this.speed(health.tokens, at)));
    this.showSlots(health);
  }

  /** Remove the last figures of a server that no longer responds. */
  clear() {
    for (const figure of this.panel.querySelectorAll("[data-figure]")) figure.textContent = "–";
    for (const box of this.panel.querySelectorAll(".slots i")) box.className = "";
    this.samples = [];
  }

  /**
   * @param {string} name
   * @param {string} text
   */
  set(name, text) {
    setText(/** @type {HTMLElement} */ (this.panel.querySelector(`[data-figure=${name}]`)), text);
  }

  /**
   * Tokens per second, over the last second.
   * @param {number} tokens
   * @param {number} at
   */
  speed(tokens, at) {
    if (this.samples.length && tokens < this.samples[this.samples.length - 1].tokens) this.samples = []; // a new server
    this.samples.push({ at, tokens });
    while (this.samples.length > 2 && this.samples[1].at <= at - WINDOW) this.samples.shift();
    const [first] = this.samples;
    return at > first.at ? (1000 * (tokens - first.tokens)) / (at - first.at) : 0;
  }

  /** The batch: a box for each slot, filled if a request uses it. @param {Health} health */
  showSlots(health) {
    const { slots, running, prefilling = 0 } = health;
    const figure = /** @type {HTMLElement} */ (this.panel.querySelector(".batch"));
    figure.hidden = slots === undefined;
    if (slots === undefined) return;
    this.set("batch", `${count(running)} of ${count(slots)}`);
    const boxes = /** @type {HTMLElement} */ (figure.querySelector(".slots"));
    const shown = Math.min(slots, MOST_SLOTS_SHOWN);
    while (boxes.children.length < shown) boxes.append(make("i"));
    while (boxes.children.length > shown) boxes.lastElementChild?.remove();
    for (const [number, box] of [...boxes.children].entries()) {
      const kind = number >= running ? "" : number >= running - prefilling ? "prefilling" : "decoding";
      if (box.className !== kind) box.className = kind;
    }
  }
}
