/** Requests to the server, and the errors that it reports. */

/**
 * @typedef {{number: string, name: string, idea: string, source: string, streams: boolean, page: string,
 *   tracks: string[][]}} Rung
 * @typedef {{rung: string, model: string, running: number, waiting: number, steps: number, tokens: number,
 *   pid: number, slots?: number, prefilling?: number}} Health
 */

/** The server rejected a request, or ended its response too early; the message gives the reason. */
export class Refusal extends Error {}

/** @returns {Promise<Rung>} */
export async function describeRung() {
  return (await fetch("/rung")).json();
}

/**
 * @param {AbortSignal} signal
 * @returns {Promise<Health>}
 */
export function getHealth(signal) {
  return request("GET", "/health", undefined, signal);
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
 * Send a request whose response is JSON or empty.
 * @param {string} method
 * @param {string} path
 * @param {object} [body]
 * @param {AbortSignal} [signal]
 */
export async function request(method, path, body, signal) {
  const response = await send(method, path, body, signal);
  if (response.status === 204) return null;
  const content = await response.json();
  if (!response.ok) throw new Refusal(reasonIn(content));
  return content;
}

/**
 * An error as a sentence. When fetch gets no connection, its own message differs from browser to browser.
 * @param {unknown} error
 */
export function describeError(error) {
  return error instanceof TypeError ? "the connection to the server is lost" : /** @type {Error} */ (error).message;
}

/**
 * The server's reason, from any of the shapes that its error bodies have.
 * @param {any} content
 * @returns {string}
 */
export function reasonIn(content) {
  if (content.error) return content.error.message || content.error.type;
  if (!Array.isArray(content.detail)) return String(content.detail ?? "no reason given");
  return content.detail
    .map((/** @type {{loc: string[], msg: string}} */ one) => `${one.loc.at(-1)}: ${one.msg}`)
    .join("; ");
}
