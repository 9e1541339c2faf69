/** The requests of many clients: in one connection, or in the few that a browser opens. */

import { reasonIn, Refusal, send } from "../shared/client.js";
import { readEvents } from "../shared/sse.js";

/**
 * @typedef {{prompt: string, max_tokens: number, temperature: number, seed: number | null,
 *   stream: boolean}} GenerateRequest
 */

/** A browser opens six connections to a server. One of them is for /health. */
export const CONNECTIONS = 5;

/**
 * Send each request in its own connection, no more at a time than the browser would send. Otherwise requests
 * that wait in the browser's queue would look as if they waited in the server's.
 * @param {GenerateRequest[]} requests
 * @param {AbortSignal} signal
 * @param {(client: number) => void} onSent
 * @returns {Promise<Response>[]}
 */
export function sendSeparately(requests, signal, onSent) {
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
 * Send all requests in one connection; each gets its own response. See ladder/web/page_clients.py.
 * @param {GenerateRequest[]} requests
 * @param {AbortSignal} signal
 * @param {(client: number) => void} onSent
 * @returns {Promise<Response>[]}
 */
export function sendTogether(requests, signal, onSent) {
  const shares = requests.map(() => new Share());
  requests.forEach((_, client) => onSent(client));
  distribute(requests, signal, shares).then(
    () => shares.forEach((share) => share.fail(new Refusal("the connection ended early"))),
    (error) => shares.forEach((share) => share.fail(error)),
  );
  return shares.map((share) => share.response);
}

/**
 * @param {GenerateRequest[]} requests
 * @param {AbortSignal} signal
 * @param {Share[]} shares
 */
async function distribute(requests, signal, shares) {
  const response = await send("POST", "/page/clients", { requests }, signal);
  if (!response.ok || !response.body) throw new Refusal(reasonIn(await response.json()));
  for await (const events of readEvents(response.body)) {
    for (const event of events) {
      const part = JSON.parse(event.data);
      shares[part.client].add(part);
    }
  }
}

/** One client's share of the connection, as the response that it would have got alone. */
class Share {
  constructor() {
    /** @type {PromiseWithResolvers<Response>} */
    this.promise = Promise.withResolvers();
    this.response = this.promise.promise;
    this.body = new ReadableStream({ start: (controller) => void (this.controller = controller) });
    this.open = true;
  }

  /** @param {{status?: number, type?: string, body?: string, ended?: boolean}} part */
  add(part) {
    if (part.status) {
      const headers = { "content-type": part.type ?? "" };
      this.promise.resolve(new Response(this.body, { status: part.status, headers }));
    } else if (part.body) {
      this.controller.enqueue(Uint8Array.from(part.body, (byte) => byte.charCodeAt(0)));
    } else if (this.open) {
      this.open = false;
      this.controller.close();
      this.promise.reject(new Refusal("no response"));
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
 * Read a response, streamed or not, to its end.
 * @param {Response} response
 * @param {(text: string, tokens: number, whole: boolean) => void} onTokens called per token, or once for the whole text
 * @returns {Promise<string>} the finish reason
 */
export async function readResponse(response, onTokens) {
  const kind = response.headers.get("content-type") ?? "";
  if (response.body && kind.startsWith("text/event-stream")) return readStream(response.body, onTokens);
  if (!response.ok) throw new Refusal(`${response.status}: ${reasonIn(await response.json().catch(() => ({})))}`);
  const content = await response.json();
  onTokens(content.text, content.completion_tokens, true);
  return content.finish_reason;
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
  throw new Refusal("the stream ended early");
}
