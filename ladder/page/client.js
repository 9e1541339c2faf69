/** Requests to the server: what the rung is, whether it is alive, what it is asked, and the generations of many clients. */

import { readEvents } from "./sse.js";

/**
 * @typedef {{number: string, name: string, idea: string, source: string, streams: boolean, page: string}} Rung
 * @typedef {{prompt: string, max_tokens: number, temperature: number, seed: number | null,
 *   stream: boolean}} GenerateRequest
 * @typedef {{rung: string, model: string, running: number, waiting: number, steps: number, tokens: number,
 *   pid: number, slots?: number, prefilling?: number}} Health
 */

/** A browser opens six connections to a server; one of them is for /health. */
export const CONNECTIONS = 5;

/** What the server said about why it did not answer. */
export class Refusal extends Error {}

/** @returns {Promise<Rung>} */
export async function describeRung() {
  return (await fetch("/rung")).json();
}

/**
 * @param {AbortSignal} signal
 * @returns {Promise<Health>}
 */
export function askHealth(signal) {
  return ask("GET", "/health", undefined, signal);
}

/**
 * @param {string} method
 * @param {string} path
 * @param {object} [body]
 * @param {AbortSignal} [signal]
 */
export function send(method, path, body, signal) {
  const headers = body && { "content-type": "application/json" };
  return fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store", signal });
}

/**
 * A question with one answer, which is JSON or nothing.
 * @param {string} method
 * @param {string} path
 * @param {object} [body]
 * @param {AbortSignal} [signal]
 */
export async function ask(method, path, body, signal) {
  const response = await send(method, path, body, signal);
  if (response.status === 204) return null;
  const answer = await response.json();
  if (!response.ok) throw new Refusal(reasonIn(answer));
  return answer;
}

/**
 * Each request in a connection of its own, no more of them than the browser sends at once: its own queue
 * would look like the server's.
 * @param {GenerateRequest[]} requests
 * @param {AbortSignal} signal
 * @param {(client: number) => void} onSent
 * @returns {Promise<Response>[]}
 */
export function askSeparately(requests, signal, onSent) {
  /** @type {(() => void)[]} */ const queue = [];
  let free = CONNECTIONS;
  return requests.map(async (request, client) => {
    if (free > 0) free -= 1;
    else await new Promise((resolve) => queue.push(() => resolve(undefined)));
    try {
      signal.throwIfAborted();
      onSent(client);
      const response = await send("POST", "/generate", request, signal);
      return new Response(await response.blob(), response);
    } finally {
      const next = queue.shift();
      if (next) next();
      else free += 1;
    }
  });
}

/**
 * All requests in one connection, each with its own answer; see ladder/web/pages.py.
 * @param {GenerateRequest[]} requests
 * @param {AbortSignal} signal
 * @param {(client: number) => void} onSent
 * @returns {Promise<Response>[]}
 */
export function askTogether(requests, signal, onSent) {
  const answers = requests.map(() => new Answer());
  requests.forEach((_, client) => onSent(client));
  share(requests, signal, answers).then(
    () => answers.forEach((answer) => answer.fail(new Refusal("the connection ended early"))),
    (error) => answers.forEach((answer) => answer.fail(error)),
  );
  return answers.map((answer) => answer.response);
}

/**
 * @param {GenerateRequest[]} requests
 * @param {AbortSignal} signal
 * @param {Answer[]} answers
 */
async function share(requests, signal, answers) {
  const response = await send("POST", "/page/clients", { requests }, signal);
  if (!response.ok || !response.body) throw new Refusal(reasonIn(await response.json()));
  for await (const events of readEvents(response.body)) {
    for (const event of events) {
      const piece = JSON.parse(event.data);
      answers[piece.client].take(piece);
    }
  }
}

/** One client's part of a shared connection, as the response it would have had alone. */
class Answer {
  constructor() {
    /** @type {PromiseWithResolvers<Response>} */
    this.promise = Promise.withResolvers();
    this.response = this.promise.promise;
    this.body = new ReadableStream({ start: (controller) => void (this.controller = controller) });
    this.open = true;
  }

  /** @param {{status?: number, type?: string, body?: string, ended?: boolean}} piece */
  take(piece) {
    if (piece.status) {
      const headers = { "content-type": piece.type ?? "" };
      this.promise.resolve(new Response(this.body, { status: piece.status, headers }));
    } else if (piece.body) {
      this.controller.enqueue(Uint8Array.from(piece.body, (byte) => byte.charCodeAt(0)));
    } else if (this.open) {
      this.open = false;
      this.controller.close();
      this.promise.reject(new Refusal("no answer"));
    }
  }

  /** @param {Error} error */
  fail(error) {
    if (!this.open) return;
    this.open = false;
    this.promise.reject(error);
    this.controller.error(error);
  }
}

/**
 * Read an answer of either kind to its end.
 * @param {Response} response
 * @param {(text: string, tokens: number, whole: boolean) => void} onTokens called for each token, or once
 * @returns {Promise<string>} why it ended
 */
export async function readAnswer(response, onTokens) {
  const kind = response.headers.get("content-type") ?? "";
  if (response.body && kind.startsWith("text/event-stream")) return readStream(response.body, onTokens);
  if (!response.ok) throw new Refusal(`${response.status}: ${reasonIn(await response.json().catch(() => ({})))}`);
  const answer = await response.json();
  onTokens(answer.text, answer.completion_tokens, true);
  return answer.finish_reason;
}

/**
 * @param {ReadableStream<Uint8Array>} body
 * @param {(text: string, tokens: number, whole: boolean) => void} onTokens
 */
async function readStream(body, onTokens) {
  let reason = "";
  for await (const events of readEvents(body)) {
    for (const event of events) {
      if (event.name === "error") throw new Refusal(reasonIn(JSON.parse(event.data)));
      if (event.data === "[DONE]") return reason;
      const token = JSON.parse(event.data);
      reason = token.finish_reason ?? reason;
      onTokens(token.token, 1, false);
    }
  }
  throw new Refusal("the stream broke off");
}

/**
 * What went wrong, for a reader. A fetch that finds nobody says so in words that differ from browser to browser.
 * @param {unknown} error
 */
export function inWords(error) {
  return error instanceof TypeError ? "the connection to the server is lost" : /** @type {Error} */ (error).message;
}

/**
 * The server's reason, in any of the shapes that its errors have.
 * @param {any} answer
 * @returns {string}
 */
export function reasonIn(answer) {
  if (answer.error) return answer.error.message || answer.error.type;
  if (!Array.isArray(answer.detail)) return String(answer.detail ?? "no reason given");
  return answer.detail
    .map((/** @type {{loc: string[], msg: string}} */ one) => `${one.loc.at(-1)}: ${one.msg}`)
    .join("; ");
}
