/**
 * Parse server-sent events by the rules of the HTML standard, as ladder/web/sse.py does in Python.
 *
 * EventSource cannot POST, so the page reads the stream of a fetch itself. The bytes arrive in parts that may end
 * anywhere: in an event, a line or a character.
 */

/** @typedef {{data: string, name: string, id: string}} ServerSentEvent */

export class EventParser {
  #decoder = new TextDecoder(); // removes a byte order mark, replaces invalid UTF-8
  #line = "";
  #afterReturn = false; // the last part ended with \r: a \n that follows belongs to it
  /** @type {string[]} */ #data = [];
  #name = "";
  #id = "";

  /**
   * Add the bytes that have arrived, and return the events that they complete.
   * @param {Uint8Array} part
   * @returns {ServerSentEvent[]}
   */
  feed(part) {
    let text = this.#decoder.decode(part, { stream: true });
    if (!text) return [];
    if (this.#afterReturn && text.startsWith("\n")) text = text.slice(1);
    this.#afterReturn = text ? text.endsWith("\r") : false;
    const lines = (this.#line + text).split(/\r\n|\r|\n/);
    this.#line = lines.pop() ?? "";
    const events = [];
    for (const line of lines) {
      if (line) this.#readField(line);
      else if (this.#data.length) events.push(this.#finishEvent());
      else this.#name = "";
    }
    return events;
  }

  /** @param {string} line */
  #readField(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#name = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    // All other fields are ignored. A comment is a field without a name.
  }

  /** @returns {ServerSentEvent} */
  #finishEvent() {
    const event = { data: this.#data.join("\n"), name: this.#name || "message", id: this.#id };
    this.#data = [];
    this.#name = "";
    return event;
  }
}

/**
 * The events of a response as they arrive.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<ServerSentEvent[]>} the events that arrived together
 */
export async function* readEvents(body) {
  const parser = new EventParser();
  const reader = body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield parser.feed(value);
  }
}
