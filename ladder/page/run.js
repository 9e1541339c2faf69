/** A run: some clients that ask at the same moment, their lanes, and the axis that these share. */

import { askSeparately, askTogether } from "./client.js";
import { Lane } from "./lane.js";
import { axisEnd, drawAxis } from "./timeline.js";

/**
 * @typedef {import("./client.js").Rung} Rung
 * @typedef {import("./client.js").GenerateRequest} GenerateRequest
 * @typedef {import("./canvas.js").Sheet} Sheet
 */

export class Run {
  /**
   * @param {GenerateRequest[]} requests one a client
   * @param {HTMLElement} list
   * @param {Sheet} axis
   */
  constructor(requests, list, axis) {
    this.requests = requests;
    this.axis = axis;
    this.axis.resized = () => (this.shownEnd = 0);
    this.shownEnd = 0;
    this.started = performance.now();
    /** @type {number | null} */ this.ended = null;
    this.leaving = new AbortController();
    for (const lane of Run.lanesOn(list)) lane.remove();
    this.lanes = requests.map((_, client) => new Lane(client + 1, this.started));
    list.append(...this.lanes.map((lane) => lane.element));
  }

  /** @param {HTMLElement} list */
  static lanesOn(list) {
    return [...list.children];
  }

  /** Send the requests and wait until each has ended, in whatever way. @param {Rung} rung */
  async finish(rung) {
    const ask = rung.streams ? askTogether : askSeparately;
    const responses = ask(this.requests, this.leaving.signal, (client) => this.lanes[client].send());
    await Promise.all(this.lanes.map((lane, client) => lane.follow(responses[client])));
    this.ended = performance.now();
  }

  stop() {
    this.leaving.abort();
  }

  draw() {
    const elapsed = (this.ended ?? performance.now()) - this.started;
    // At the end the bars take all the room there is.
    const end = this.ended === null ? axisEnd(elapsed) : elapsed * 1.03;
    if (end !== this.shownEnd) {
      drawAxis(this.axis, end);
      for (const lane of this.lanes) lane.changed = true;
    }
    this.shownEnd = end;
    for (const lane of this.lanes) lane.draw(end);
  }
}
