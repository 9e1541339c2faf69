/** What a run has shown, as figures and as text to copy. */

import { count, duration, median, several } from "./format.js";
import { waits } from "./heartbeat.js";

/**
 * @typedef {import("./client.js").Rung} Rung
 * @typedef {import("./client.js").GenerateRequest} GenerateRequest
 * @typedef {import("./heartbeat.js").Beat} Beat
 * @typedef {import("./lane.js").Lane} Lane
 * @typedef {{label: string, value: string, note: string}} Figure
 */

/**
 * The figures of a run; without lanes, the same with nothing in them.
 * @param {Lane[]} lanes
 * @param {Beat[]} beats those that were due during the run
 * @returns {Figure[]}
 */
export function summarize(lanes, beats) {
  const firsts = lanes.map((lane) => lane.ttft).filter((ttft) => ttft !== null);
  const tokens = lanes.reduce((sum, lane) => sum + lane.count, 0);
  const time = Math.max(0, ...lanes.map((lane) => lane.ended ?? 0));
  const health = waits(beats);
  return [
    { label: "First token, median", value: firsts.length ? duration(median(firsts)) : "–", note: "" },
    { label: "First token, worst", value: firsts.length ? duration(Math.max(...firsts)) : "–", note: "" },
    {
      label: "Tokens per second",
      value: time ? count((1000 * tokens) / time) : "–",
      note: time ? `${several(tokens, "token")} in ${duration(time)}` : "",
    },
    { label: "/health, median", value: health.p50 === null ? "–" : duration(health.p50), note: "" },
    {
      label: "/health, longest",
      value: health.max === null ? "–" : duration(health.max),
      note: (health.probes ? several(health.probes, "probe") : "") + (health.lost ? `, ${health.lost} without an answer` : ""),
    },
  ];
}

/**
 * How the lanes ended, in a sentence.
 * @param {Lane[]} lanes
 */
export function outcome(lanes) {
  const words = [
    ["done", "done"],
    ["stopped", "stopped"],
    ["failed", "failed"],
  ].map(([state, word]) => [lanes.filter((lane) => lane.state === state).length, word]);
  const parts = words.filter(([number]) => number).map(([number, word]) => `${number} ${word}`);
  return `${several(lanes.length, "client")}: ${parts.join(", ")}`;
}

/**
 * @param {Rung} rung
 * @param {string} model
 * @param {GenerateRequest} request
 * @param {Lane[]} lanes
 * @param {Figure[]} figures
 */
export function asText(rung, model, request, lanes, figures) {
  const kind = request.stream ? "streaming" : "not streaming";
  return [
    `Rung ${rung.number}: ${rung.name}, model ${model}`,
    `${outcome(lanes)}; ${kind}, at most ${several(request.max_tokens, "token")}, temperature ${request.temperature}`,
    ...figures.map(({ label, value, note }) => `${label}: ${value}${note && ` (${note})`}`),
    "",
  ].join("\n");
}

/**
 * Into the clipboard, which browsers give only to pages on this machine or with https; else select it.
 * @param {string} text
 * @param {HTMLTextAreaElement} fallback
 * @returns {Promise<boolean>} whether it is there
 */
export async function copy(text, fallback) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    fallback.hidden = false;
    fallback.value = text;
    fallback.select();
    return false;
  }
}
