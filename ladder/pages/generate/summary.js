/** The results of a run, as figures and as text to copy. */

import { count, duration, median, plural } from "../shared/format.js";
import { waits } from "../shared/heartbeat.js";

/**
 * @typedef {import("../shared/client.js").Rung} Rung
 * @typedef {import("./clients.js").GenerateRequest} GenerateRequest
 * @typedef {import("../shared/heartbeat.js").Beat} Beat
 * @typedef {import("./lane.js").Lane} Lane
 * @typedef {{label: string, value: string, note: string}} Figure
 */

/**
 * The figures of a run. Without lanes, the values are empty.
 * @param {Lane[]} lanes
 * @param {Beat[]} beats the probes that were due during the run
 * @returns {Figure[]}
 */
export function summarize(lanes, beats) {
  const firsts = lanes.map((lane) => lane.ttft).filter((ttft) => ttft !== null);
  const tokens = lanes.reduce((sum, lane) => sum + lane.count, 0);
  const time = Math.max(0, ...lanes.map((lane) => lane.ended ?? 0));
  const health = waits(beats);
  return [
    { label: "TTFT, median", value: firsts.length ? duration(median(firsts)) : "–", note: "" },
    { label: "TTFT, maximum", value: firsts.length ? duration(Math.max(...firsts)) : "–", note: "" },
    {
      label: "Tokens per second",
      value: time ? count((1000 * tokens) / time) : "–",
      note: time ? `${plural(tokens, "token")} in ${duration(time)}` : "",
    },
    { label: "/health, median", value: health.p50 === null ? "–" : duration(health.p50), note: "" },
    {
      label: "/health, maximum",
      value: health.max === null ? "–" : duration(health.max),
      note: (health.probes ? plural(health.probes, "probe") : "") + (health.lost ? `, ${health.lost} without a response` : ""),
    },
  ];
}

/**
 * How many lanes ended in which way, as a sentence.
 * @param {Lane[]} lanes
 */
export function outcome(lanes) {
  const counts = ["done", "stopped", "failed"].map((state) => {
    const number = lanes.filter((lane) => lane.state === state).length;
    return number ? [`${number} ${state}`] : [];
  });
  return `${plural(lanes.length, "client")}: ${counts.flat().join(", ")}`;
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
    `${outcome(lanes)}; ${kind}, at most ${plural(request.max_tokens, "token")}, temperature ${request.temperature}`,
    ...figures.map(({ label, value, note }) => `${label}: ${value}${note && ` (${note})`}`),
    "",
  ].join("\n");
}

/**
 * Copy to the clipboard. Browsers allow this only on localhost or with https; otherwise show and select the text.
 * @param {string} text
 * @param {HTMLTextAreaElement} fallback
 * @returns {Promise<boolean>} whether it was copied
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
