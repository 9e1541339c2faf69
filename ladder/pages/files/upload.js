/** Uploads with progress. After a broken connection an upload continues from the size that the server has. */

import { reasonIn } from "../shared/client.js";
import { bytes, plural } from "../shared/format.js";
import { CAN_HASH, hex, sha256 } from "./hash.js";

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 8000;
const MOST_TO_HASH = 256 * 2 ** 20;

/** The server rejected the upload, so a retry would fail too. */
class Refused extends Error {}

/** The connection broke, and the upload can be retried. */
class Broken extends Error {}

/** The row of an upload in the list. */
class Row {
  /** @param {HTMLElement} row @param {File} file */
  constructor(row, file) {
    this.row = row;
    this.size = file.size;
    this.part(".file").textContent = file.name;
    this.part(".size").textContent = bytes(file.size);
    this.part(".bar").setAttribute("aria-label", file.name);
  }

  /** @param {string} selector */
  part(selector) {
    return /** @type {HTMLElement} */ (this.row.querySelector(selector));
  }

  /** @param {"sent" | "written"} layer @param {number} size */
  fill(layer, size) {
    const percent = this.size ? (100 * size) / this.size : 100;
    this.part(`.${layer}`).style.width = `${percent}%`;
    if (layer === "written") this.part(".bar").setAttribute("aria-valuenow", String(Math.round(percent)));
  }

  /** @param {string} text */
  say(text) {
    this.part(".state").textContent = text;
  }

  /** @param {"done" | "failed"} state @param {string} text */
  end(state, text) {
    this.row.className = state;
    this.part(".actions").remove();
    this.say(text);
  }
}

/**
 * Send a body with XMLHttpRequest: only it reports how much has been sent.
 * @param {XMLHttpRequest} request
 * @param {XMLHttpRequestBodyInit} body
 * @param {(sent: number) => void} onSent
 * @returns {Promise<any>}
 */
function send(request, body, onSent) {
  return new Promise((resolve, reject) => {
    request.upload.onprogress = (event) => onSent(event.loaded);
    request.onerror = request.onabort = () => reject(new Broken());
    request.onload = () => {
      if (request.status < 300) resolve(JSON.parse(request.responseText));
      else if (request.status === 408 || request.status === 409 || request.status === 503) reject(new Broken());
      else reject(new Refused(`${request.status}: ${reason(request.responseText)}`));
    };
    request.send(body);
  });
}

/** @param {string} text */
function reason(text) {
  try {
    return reasonIn(JSON.parse(text));
  } catch {
    return "no reason given";
  }
}

/** A file as the body of PUT, with an id by which the server can resume it. */
export class Upload {
  /** @param {File} file @param {HTMLElement} row */
  constructor(file, row) {
    this.file = file;
    this.row = new Row(row, file);
    this.id = hex(crypto.getRandomValues(new Uint8Array(16)));
    /** @type {XMLHttpRequest | null} */ this.request = null;
    /** @type {(() => void) | null} */ this.resume = null;
    this.paused = false;
    this.breaks = 0;
    this.row.part(".break").onclick = () => this.request?.abort();
    this.row.part(".pause").onclick = () => this.togglePause();
  }

  togglePause() {
    this.paused = !this.paused;
    this.row.part(".pause").textContent = this.paused ? "Resume" : "Pause";
    if (this.paused) {
      this.row.say("paused");
      this.request?.abort();
    } else {
      this.resume?.();
    }
  }

  async run() {
    const progress = this.watch();
    let pause = FIRST_PAUSE;
    for (;;) {
      try {
        const before = await this.getOffset();
        pause = before.size > 0 ? FIRST_PAUSE : pause;
        if (this.paused) throw new Broken(); // the user paused it during the request
        const stored = before.complete ? null : await this.send(before.size);
        progress.close();
        return await this.conclude(stored);
      } catch (error) {
        if (error instanceof Refused) {
          progress.close();
          return this.row.end("failed", error.message);
        }
        this.breaks += 1;
        await this.rest(pause);
        pause = Math.min(2 * pause, LONGEST_PAUSE);
      }
    }
  }

  /** Show what the server has written, from the server's own events. */
  watch() {
    const source = new EventSource(`/upload/${this.id}/events`);
    const show = (/** @type {MessageEvent} */ event) => this.row.fill("written", JSON.parse(event.data).received);
    for (const kind of ["receiving", "interrupted", "done"]) source.addEventListener(kind, show);
    source.addEventListener("done", () => source.close());
    return source;
  }

  async getOffset() {
    const response = await fetch(`/upload/${this.id}`, { method: "HEAD", cache: "no-store" });
    if (!response.ok) throw new Broken();
    return {
      size: Number(response.headers.get("upload-offset")),
      complete: response.headers.get("upload-complete") === "?1",
    };
  }

  /** @param {number} offset */
  async send(offset) {
    const started = performance.now();
    this.request = new XMLHttpRequest();
    this.request.open("PUT", `/upload/${encodeURIComponent(this.file.name)}?id=${this.id}`);
    this.request.setRequestHeader("upload-offset", String(offset));
    const from = offset ? `from ${bytes(offset)}, ` : "";
    return send(this.request, this.file.slice(offset), (sent) => {
      this.row.fill("sent", offset + sent);
      const speed = sent / Math.max(1, performance.now() - started) * 1000;
      this.row.say(`sending ${from}${bytes(speed)}/s`);
    });
  }

  /** @param {number} milliseconds */
  async rest(milliseconds) {
    if (this.paused) this.row.say("paused");
    else this.row.say(`the connection broke; retrying in ${milliseconds / 1000} s`);
    await new Promise((resolve) => {
      this.resume = () => resolve(undefined);
      if (!this.paused) setTimeout(resolve, milliseconds);
    });
    while (this.paused) await new Promise((resolve) => (this.resume = () => resolve(undefined)));
  }

  /** @param {{sha256: string} | null} stored the server's response */
  async conclude(stored) {
    this.row.fill("sent", this.file.size);
    this.row.fill("written", this.file.size);
    const breaks = this.breaks ? `, after ${plural(this.breaks, "broken connection")}` : "";
    if (!stored || !CAN_HASH || this.file.size > MOST_TO_HASH) return this.row.end("done", `stored${breaks}`);
    const ours = await sha256(await this.file.arrayBuffer());
    if (ours === stored.sha256) this.row.end("done", `stored${breaks}; same SHA-256 here and on the server: ${ours.slice(0, 16)}…`);
    else this.row.end("failed", "the file on the server differs");
  }
}

/** A file as a form sends it, in one request. */
export class FormUpload {
  /** @param {File} file @param {HTMLElement} row */
  constructor(file, row) {
    this.file = file;
    this.row = new Row(row, file);
    this.request = new XMLHttpRequest();
    this.row.part(".pause").remove();
    this.row.part(".break").onclick = () => this.request.abort();
  }

  async run() {
    const body = new FormData();
    body.append("file", this.file);
    this.request.open("POST", "/upload/stream");
    try {
      const [stored] = await send(this.request, body, (sent) => {
        this.row.fill("sent", Math.min(sent, this.file.size));
        this.row.say("sending as a form");
      });
      this.row.fill("written", stored.size);
      this.row.end("done", `stored; SHA-256 ${stored.sha256.slice(0, 16)}…`);
    } catch (error) {
      this.row.end("failed", error instanceof Refused ? error.message : "the connection broke, and the server kept nothing");
    }
  }
}
