/** A run: clients that send their requests at the same moment, their lanes, and the time axis of all lanes. */

import { sendSeparately, sendTogether } from "./clients.js";
import { Lane } from "./lane.js";
import { axisEnd, drawAxis } from "./timeline.js";

/**
 * @typedef {import("../shared/client.js").Rung} Rung
 * @typedef {import("./clients.js").GenerateRequest} GenerateRequest
 * @typedef {import("../shared/canvas.js").Sheet} Sheet
 */

export class Run {
  /**
   * @param {GenerateRequest[]} requests one per client
   * @param {HTMLElement} list
   * @param {Sheet} axis
   */
  constructor(requests, list, axis) {
    this.requests = requests;
    this.axis = axis;
    this.axis.redraw = () => (this.shownEnd = 0);
    this.shownEnd = 0;
    this.started = performance.now();
    /** @type {number | null} */ this.ended = null;
    this.aborting = new AbortController();
    this.lanes = requests.map((_, client) => new Lane(client + 1, this.started));
    list.replaceChildren(...this.lanes.map((lane) => lane.element));
  }

  /** Send the requests, and wait until each is done, stopped or failed. @param {Rung} rung */
  async finish(rung) {
    const sendAll = rung.streams ? sendTogether : sendSeparately;
    const responses = sendAll(this.requests, this.aborting.signal, (client) => this.lanes[client].send());
    await Promise.all(this.lanes.map((lane, client) => lane.follow(responses[client])));
    this.ended = performance.now();
  }

  stop() {
    this.aborting.abort();
  }

  draw() {
    const elapsed = (this.ended ?? performance.now()) - this.started;
    // After the run the bars use the whole width.
    const end = this.ended === null ? axisEnd(elapsed) : elapsed * 1.03;
    if (end !== this.shownEnd) {
      drawAxis(this.axis, end);
      for (const lane of this.lanes) lane.changed = true;
    }
    this.shownEnd = end;
    for (const lane of this.lanes) lane.draw(end);
  }
}
