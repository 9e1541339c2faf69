/** The page of a rung that serves a language model: its controls, the engine's figures and the run. */

import { Sheet } from "../shared/canvas.js";
import { element, make, setText } from "../shared/dom.js";
import { plural } from "../shared/format.js";
import { begin } from "../shared/shell.js";
import { CONNECTIONS } from "./clients.js";
import { EngineFigures } from "./engine.js";
import { Run } from "./run.js";
import { asText, copy, outcome, summarize } from "./summary.js";

const form = /** @type {HTMLFormElement} */ (element("controls"));
const fields = {
  prompt: /** @type {HTMLTextAreaElement} */ (element("prompt")),
  tokens: /** @type {HTMLInputElement} */ (element("max-tokens")),
  temperature: /** @type {HTMLInputElement} */ (element("temperature")),
  seed: /** @type {HTMLInputElement} */ (element("seed")),
  clients: /** @type {HTMLInputElement} */ (element("clients")),
  stream: /** @type {HTMLInputElement} */ (element("stream")),
};
const axis = new Sheet(/** @type {HTMLCanvasElement} */ (element("axis")));

/** @type {import("../shared/client.js").Rung | null} */ let rung = null;
/** @type {Run | null} */ let run = null;
let summaryText = "";
let model = "";

const engine = new EngineFigures(element("engine"));
const { heartbeat, strip } = begin({
  onRung: setRung,
  onHealth: (health, at) => {
    model = health.model;
    setText(element("model"), model);
    engine.show(health, at);
  },
  onLost: () => engine.clear(),
  keepFrom: () => (run && running() ? run.started : Infinity),
});

/** @param {import("../shared/client.js").Rung} described */
function setRung(described) {
  rung = described;
  if (fields.stream.disabled === rung.streams) fields.stream.checked = rung.streams; // else keep the user's choice
  fields.stream.disabled = !rung.streams;
  showHints();
  showButtons();
}

function showHints() {
  const clients = fields.clients.valueAsNumber;
  setText(element("clients-shown"), String(clients));
  element("stream-hint").hidden = rung?.streams ?? true;
  element("clients-hint").hidden = (rung?.streams ?? true) || clients <= CONNECTIONS;
}

function running() {
  return run !== null && run.ended === null;
}

function showButtons() {
  /** @type {HTMLButtonElement} */ (element("start")).disabled = rung === null || running();
  /** @type {HTMLButtonElement} */ (element("stop")).disabled = !running();
}

/** One request per client. With a seed, client n adds n to it: the outputs differ and can be reproduced. */
function requests() {
  const seed = fields.seed.value === "" ? null : fields.seed.valueAsNumber;
  return Array.from({ length: fields.clients.valueAsNumber }, (_, client) => ({
    prompt: fields.prompt.value,
    max_tokens: fields.tokens.valueAsNumber,
    temperature: fields.temperature.valueAsNumber,
    seed: seed === null ? null : seed + client,
    stream: fields.stream.checked,
  }));
}

async function start() {
  if (rung === null || running()) return;
  element("lanes").hidden = false;
  clearSummary();
  const list = element("lane-list");
  const thisRun = new Run(requests(), list, axis);
  run = thisRun;
  list.dataset.size = run.lanes.length <= 2 ? "few" : run.lanes.length <= 6 ? "some" : "many";
  strip.run = { from: run.started, to: null };
  setText(element("status"), `Running: ${plural(run.lanes.length, "client")}.`);
  showButtons();
  await run.finish(rung);
  strip.run.to = run.ended;
  showButtons();
  setText(element("status"), `${outcome(run.lanes)}.`);
  await conclude(thisRun, rung);
}

/**
 * @param {Run} ended
 * @param {import("../shared/client.js").Rung} rung
 */
async function conclude(ended, rung) {
  const beats = await heartbeat.during(ended.started, ended.ended ?? 0);
  if (run !== ended) return; // the next run started before the last probe had its response
  const figures = summarize(ended.lanes, beats);
  summaryText = asText(rung, model, ended.requests[0], ended.lanes, figures);
  showFigures(figures);
  /** @type {HTMLButtonElement} */ (element("copy")).disabled = false;
}

/** @param {import("./summary.js").Figure[]} figures */
function showFigures(figures) {
  const rows = figures.map(({ label, value, note }) =>
    make("div", {}, make("dt", {}, label), make("dd", {}, value), make("dd", {}, note || "\u00a0")),
  );
  element("summary-figures").replaceChildren(...rows);
}

/** Show the summary without figures, so that nothing moves when they arrive. */
function clearSummary() {
  element("summary").hidden = false;
  showFigures(summarize([], []));
  /** @type {HTMLButtonElement} */ (element("copy")).disabled = true;
  setText(element("copied"), "");
  element("copy-text").hidden = true;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
fields.prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") run?.stop();
});
element("stop").addEventListener("click", () => run?.stop());
fields.clients.addEventListener("input", showHints);
for (const example of document.querySelectorAll("#examples button")) {
  example.addEventListener("click", () => (fields.prompt.value = example.textContent ?? ""));
}
element("copy").addEventListener("click", async () => {
  const done = await copy(summaryText, /** @type {HTMLTextAreaElement} */ (element("copy-text")));
  setText(element("copied"), done ? "Copied." : "Selected. Copy it with the keyboard.");
});

const FRAME = 30; // milliseconds: more frequent drawing would take processor time from the model
let drawn = 0;

/** @param {number} now */
function frame(now) {
  if (now - drawn >= FRAME) {
    drawn = now;
    run?.draw();
  }
  requestAnimationFrame(frame);
}

requestAnimationFrame(frame);
