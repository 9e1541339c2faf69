/** One client: its request, what has come back so far, and how that looks. */

import { Sheet } from "./canvas.js";
import { inWords, readAnswer } from "./client.js";
import { copyTemplate, setText } from "./dom.js";
import { count, duration } from "./format.js";
import { drawCourse } from "./timeline.js";

const WORDS = {
  unsent: "not sent",
  waiting: "waiting",
  streaming: "streaming",
  done: "done",
  stopped: "stopped",
  failed: "failed",
};

/** @typedef {keyof typeof WORDS} State */

export class Lane {
  /**
   * @param {number} client counted from 1
   * @param {number} started when the run began
   */
  constructor(client, started) {
    this.started = started;
    /** @type {State} */ this.state = "unsent";
    /** @type {number | null} */ this.sent = null;
    /** @type {number | null} */ this.ended = null;
    /** @type {number[]} */ this.tokens = []; // when each was seen
    this.count = 0;
    this.whole = false; // it came all at once
    this.unshown = "";
    this.problem = "";
    this.element = copyTemplate("lane");
    this.parts = {
      state: this.find(".state"),
      text: this.find(".words").appendChild(document.createTextNode("")),
      problem: this.find(".problem"),
      ttft: this.find(".ttft"),
      speed: this.find(".speed"),
      total: this.find(".total"),
    };
    this.find(".number").textContent = String(client);
    this.find(".text").setAttribute("aria-label", `Text of client ${client}`);
    this.sheet = new Sheet(/** @type {HTMLCanvasElement} */ (this.find("canvas")));
    this.sheet.resized = () => (this.changed = true);
    this.changed = true;
  }

  /** @param {string} selector */
  find(selector) {
    return /** @type {HTMLElement} */ (this.element.querySelector(selector));
  }

  now() {
    return performance.now() - this.started;
  }

  send() {
    this.sent = this.now();
    this.state = "waiting";
  }

  /** @param {Promise<Response>} response */
  async follow(response) {
    try {
      await readAnswer(await response, (text, tokens, whole) => this.take(text, tokens, whole));
      this.end("done");
    } catch (error) {
      if (/** @type {Error} */ (error).name === "AbortError") this.end("stopped");
      else this.fail(/** @type {Error} */ (error));
    }
  }

  /**
   * @param {string} text
   * @param {number} tokens
   * @param {boolean} whole
   */
  take(text, tokens, whole) {
    this.tokens.push(this.now());
    this.count += tokens;
    this.whole = whole;
    this.unshown += text;
    this.state = "streaming";
    this.changed = true;
  }

  /** @param {State} state */
  end(state) {
    this.ended = this.now();
    this.state = state;
    this.changed = true;
  }

  /** @param {Error} error */
  fail(error) {
    this.problem = inWords(error);
    this.end("failed");
  }

  /** Time to the first token that can be read, from before the request was sent. */
  get ttft() {
    return this.tokens.length && this.sent !== null ? this.tokens[0] - this.sent : null;
  }

  get total() {
    return this.sent === null ? null : (this.ended ?? this.now()) - this.sent;
  }

  /** Called at most once a frame, however many tokens have come since the last. @param {number} end */
  draw(end) {
    const moving = this.ended === null;
    if (!moving && !this.changed) return;
    this.changed = false;
    // Most answers begin with the space between them and the prompt.
    if (this.unshown) this.parts.text.appendData(this.parts.text.length ? this.unshown : this.unshown.trimStart());
    this.unshown = "";
    this.element.dataset.state = this.state;
    setText(this.parts.state, WORDS[this.state]);
    setText(this.parts.problem, this.problem);
    const { ttft, total } = this;
    const waited = this.state === "waiting" ? total : null;
    setText(this.parts.ttft, ttft !== null ? duration(ttft) : waited !== null ? `${duration(waited)} …` : "–");
    setText(this.parts.speed, total && this.count ? count((1000 * this.count) / total) : "–");
    setText(this.parts.total, total !== null && this.ended !== null ? duration(total) : "–");
    drawCourse(this.sheet, this, this.now(), end);
  }
}
