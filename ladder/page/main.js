/** Puts the page together: its controls, the pulse, the engine's figures and the run. */

import { Sheet } from "./canvas.js";
import { CONNECTIONS, describeRung } from "./client.js";
import { setText } from "./dom.js";
import { EngineFigures } from "./engine.js";
import { several } from "./format.js";
import { Heartbeat, Strip } from "./heartbeat.js";
import { Run } from "./run.js";
import { asText, copy, outcome, summarize } from "./summary.js";

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @returns {T}
 */
const element = (id) => /** @type {T} */ (document.getElementById(id));

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
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

/** @type {import("./client.js").Rung | null} */ let rung = null;
/** @type {Run | null} */ let run = null;
let summaryText = "";
let model = "";

const engine = new EngineFigures(element("engine"));
const heartbeat = new Heartbeat((health, at) => {
  model = health.model;
  setText(element("model"), model);
  engine.show(health, at);
});
const strip = new Strip(element("heartbeat"), heartbeat);

heartbeat.onLost = () => {
  const time = new Date().toLocaleTimeString();
  setText(element("lost"), `The server has given no answer since ${time}. Still asking.`);
  element("lost").hidden = false;
  engine.clear();
};
heartbeat.onBack = () => {
  element("lost").hidden = true;
  introduce(); // another rung may have taken the place
};

async function introduce() {
  try {
    rung = await describeRung();
  } catch {
    return; // the pulse says what is wrong, and comes back here when it is over
  }
  document.title = `Rung ${rung.number}: ${rung.name}`;
  document.documentElement.dataset.rung = rung.number;
  setText(element("number"), rung.number);
  setText(element("name"), rung.name);
  setText(element("idea"), rung.idea);
  setText(element("source"), rung.source);
  element("docs").hidden = !rung.streams; // Flask has none
  fields.stream.disabled = !rung.streams;
  fields.stream.checked = rung.streams;
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

/** Each client's request; with a seed each has its own, so that their texts differ and can be had again. */
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
  const thisRun = new Run(requests(), list, /** @type {HTMLTemplateElement} */ (element("lane")), axis);
  run = thisRun;
  list.dataset.size = run.lanes.length <= 2 ? "few" : run.lanes.length <= 6 ? "some" : "many";
  strip.run = { from: run.started, to: null };
  setText(element("status"), `Running: ${several(run.lanes.length, "client")}.`);
  showButtons();
  await run.finish(rung);
  strip.run.to = run.ended;
  showButtons();
  setText(element("status"), `${outcome(run.lanes)}.`);
  await conclude(thisRun, rung);
}

/**
 * @param {Run} ended
 * @param {import("./client.js").Rung} rung
 */
async function conclude(ended, rung) {
  const beats = await heartbeat.during(ended.started, ended.ended ?? 0);
  if (run !== ended) return; // the next one has begun while the last probe was out
  const figures = summarize(ended.lanes, beats);
  summaryText = asText(rung, model, ended.requests[0], ended.lanes, figures);
  showFigures(figures);
  /** @type {HTMLButtonElement} */ (element("copy")).disabled = false;
}

/** @param {import("./summary.js").Figure[]} figures */
function showFigures(figures) {
  const rows = figures.map((figure) => {
    const row = document.createElement("div");
    for (const [tag, text] of [["dt", figure.label], ["dd", figure.value], ["dd", figure.note || "\u00a0"]]) {
      row.appendChild(document.createElement(tag)).textContent = text;
    }
    return row;
  });
  element("summary-figures").replaceChildren(...rows);
}

/** The place for the figures is there from the start, so that nothing jumps when they come. */
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
  setText(element("copied"), done ? "Copied." : "Selected: copy it with the keyboard.");
});

const PICTURE = 30; // milliseconds: more would take time from the model, which runs on the same processor
let drawn = 0;
let stripDrawn = 0;

/** @param {number} now */
function frame(now) {
  if (now - drawn >= PICTURE) {
    drawn = now;
    run?.draw();
  }
  // The strip moves on by a pixel or two at a time; with reduced motion, a little each second.
  if (now - stripDrawn >= (reducedMotion.matches ? 1000 : 45)) {
    stripDrawn = now;
    strip.draw();
    heartbeat.forget(Math.min(performance.now() - 60_000, run && running() ? run.started : Infinity));
  }
  requestAnimationFrame(frame);
}

introduce();
heartbeat.start();
requestAnimationFrame(frame);
