/** One client: its request, its response so far, and the drawing of both. */

import { Sheet } from "../shared/canvas.js";
import { describeError } from "../shared/client.js";
import { copyTemplate, setText } from "../shared/dom.js";
import { count, duration } from "../shared/format.js";
import { readResponse } from "./clients.js";
import { drawCourse } from "./timeline.js";

const STATES = {
  unsent: "not sent",
  waiting: "waiting",
  streaming: "streaming",
  done: "done",
  stopped: "stopped",
  failed: "failed",
};

/** @typedef {keyof typeof STATES} State */

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
    /** @type {number[]} */ this.tokens = []; // when each arrived
    this.count = 0;
    this.whole = false; // the text arrived all at once
    this.undrawn = "";
    this.problem = "";
    this.element = copyTemplate("lane");
    this.parts = {
      state: this.find(".state"),
      text: this.find(".output").appendChild(document.createTextNode("")),
      problem: this.find(".problem"),
      ttft: this.find(".ttft"),
      speed: this.find(".speed"),
      total: this.find(".total"),
    };
    this.find(".number").textContent = String(client);
    this.find(".text").setAttribute("aria-label", `Output of client ${client}`);
    this.sheet = new Sheet(/** @type {HTMLCanvasElement} */ (this.find("canvas")));
    this.sheet.redraw = () => (this.changed = true);
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
      await readResponse(await response, (text, tokens, whole) => this.add(text, tokens, whole));
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
  add(text, tokens, whole) {
    this.tokens.push(this.now());
    this.count += tokens;
    this.whole = whole;
    this.undrawn += text;
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
    this.problem = describeError(error);
    this.end("failed");
  }

  /** Time to first token, measured from before the request is sent. */
  get ttft() {
    return this.tokens.length && this.sent !== null ? this.tokens[0] - this.sent : null;
  }

  get total() {
    return this.sent === null ? null : (this.ended ?? this.now()) - this.sent;
  }

  /** Called at most once per frame, however many tokens have arrived since the last one. @param {number} end */
  draw(end) {
    const moving = this.ended === null;
    if (!moving && !this.changed) return;
    this.changed = false;
    // Most outputs start with the space that separates them from the prompt.
    if (this.undrawn) this.parts.text.appendData(this.parts.text.length ? this.undrawn : this.undrawn.trimStart());
    this.undrawn = "";
    this.element.dataset.state = this.state;
    setText(this.parts.state, STATES[this.state]);
    setText(this.parts.problem, this.problem);
    const { ttft, total } = this;
    const waited = this.state === "waiting" ? total : null;
    setText(this.parts.ttft, ttft !== null ? duration(ttft) : waited !== null ? `${duration(waited)} …` : "–");
    setText(this.parts.speed, total && this.count ? count((1000 * this.count) / total) : "–");
    setText(this.parts.total, total !== null && this.ended !== null ? duration(total) : "–");
    drawCourse(this.sheet, this, this.now(), end);
  }
}
