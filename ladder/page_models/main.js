/** Rung 10's page: one drawing, every version's reading of it, and the versions themselves. */

import { ask, inWords, Refusal } from "./client.js";
import { beginPad, Cards, clearFigures, showLoaded } from "./digits.js";
import { element, make, setText } from "./dom.js";
import { bytes, count, duration } from "./format.js";
import { begin } from "./shell.js";
import { labelCells } from "./tables.js";

const cards = new Cards();
/** @type {number[] | null} */ let drawn = null;
/** @type {string | null} */ let prediction = null;
let latest = 0;
let unread = false; // a version gave no answer about the drawing

/** @param {number[]} features */
async function predict(features) {
  const mine = ++latest;
  unread = false;
  /** @type {HTMLButtonElement} */ (element("take-part")).disabled = false;
  await Promise.all(
    [...cards].map(async ([version, card]) => {
      const started = performance.now();
      try {
        const answer = await ask("POST", `/predict?version=${version}`, { features });
        if (mine === latest) card.show(answer, performance.now() - started);
      } catch (error) {
        if (mine !== latest) return;
        unread = true;
        card.say(inWords(error));
      }
    }),
  );
}

/** While one drawing is being read the next ones replace each other: only the newest is asked for. */
let busy = false;
/** @type {number[] | null} */ let next = null;

/** @param {number[]} features */
async function draw(features) {
  forgetAnswer();
  drawn = next = [...features];
  if (busy) return;
  busy = true;
  while (next) {
    const now = next;
    next = null;
    await predict(now);
  }
  busy = false;
}

let shown = ""; // the models as the server described them
let readable = ""; // the versions that can read a drawing

async function showModels() {
  let models;
  try {
    models = await ask("GET", "/models");
  } catch {
    shown = readable = "";
    return; // the pulse says what is wrong
  }
  const description = JSON.stringify(models);
  if (description === shown) return;
  shown = description;
  showVersions(models);
  readAgain(models);
}

/** A drawing is read again when a version has come or gone, or could not read it. @param {any} models */
function readAgain(models) {
  const versions = Object.entries(models.digits.versions);
  const now = versions.filter(([, /** @type {any} */ info]) => info.state !== "unloaded").map(([version]) => version).join();
  if ((unread || now !== readable) && drawn) predict(drawn); // that one is idle is no reason: it would be loaded
  readable = now;
}

/** Only when something has changed: a row that is replaced takes a click along that has just begun. @param {any} models */
function showVersions(models) {
  const rows = [];
  for (const [name, model] of Object.entries(models)) {
    for (const [version, info] of Object.entries(/** @type {any} */ (model).versions)) {
      if (name === "digits") cards.add(version, /** @type {any} */ (info).about);
      rows.push(versionRow(name, model, version, info));
    }
  }
  const focused = document.activeElement?.getAttribute("aria-label");
  element("versions").replaceChildren(...rows);
  labelCells(element("versions"));
  if (focused) [...element("versions").querySelectorAll("button")].find((button) => button.ariaLabel === focused)?.focus();
}

/**
 * @param {string} name
 * @param {any} model
 * @param {string} version
 * @param {any} info
 */
function versionRow(name, model, version, info) {
  const isDefault = model.default === version;
  const score = model.task === "classification" ? `${(100 * info.held_out).toFixed(1)} %` : `R² ${info.held_out.toFixed(2)}`;
  const buttons = make("td", { className: "buttons wide" });
  const path = `/models/${name}/versions/${version}`;
  if (info.state === "unloaded") buttons.append(action("Load", `Load ${name} ${version}`, () => ask("PUT", path)));
  else if (!isDefault) {
    buttons.append(
      action("Make default", `Make ${name} ${version} the default`, () => ask("PUT", `/models/${name}/default`, { version })),
      action("Unload", `Unload ${name} ${version}`, () => ask("DELETE", path)),
    );
  }
  const row = make("tr", {}, make("th", { scope: "row" }, `${name} ${version}`));
  for (const text of [isDefault ? "default" : "–", info.state, score, info.bytes ? bytes(info.bytes) : "–", count(info.in_flight)]) {
    row.append(make("td", {}, text));
  }
  row.append(buttons);
  row.dataset.version = `${name} ${version}`;
  return row;
}

/** @param {string} text @param {string} label @param {() => Promise<unknown>} work */
function action(text, label, work) {
  const button = make("button", { type: "button", ariaLabel: label }, text);
  button.addEventListener("click", async () => {
    try {
      await work();
      setText(element("status"), `${label}: done.`);
    } catch (error) {
      setText(element("status"), `${label}: ${inWords(error)}`);
    }
    await showModels();
  });
  return button;
}

element("experiment").addEventListener("submit", async (event) => {
  event.preventDefault();
  const user = /** @type {HTMLInputElement} */ (element("user")).value;
  const features = drawn;
  forgetAnswer();
  try {
    const answer = await ask("POST", `/predict/ab-test?user_id=${encodeURIComponent(user)}`, { features });
    if (features === drawn) showAnswer(user, answer);
  } catch (error) {
    setText(element("arm"), inWords(error));
  }
  await showReport();
});

/** @param {string} user @param {any} answer */
function showAnswer(user, answer) {
  prediction = answer.prediction_id;
  const { model_version: version, prediction: digit } = answer;
  setText(
    element("arm"),
    prediction
      ? `${version} is ${user}'s version. It answered ${digit}. Which digit is it?`
      : `${version} answered ${digit}, because ${user}'s version is unloaded; this does not count.`,
  );
  element("labels").hidden = !prediction;
}

/** The experiment's answer was about another drawing. */
function forgetAnswer() {
  prediction = null;
  setText(element("arm"), "");
  element("labels").hidden = true;
}

/** @param {number} digit */
async function label(digit) {
  element("labels").hidden = true; // a prediction takes one label
  try {
    await ask("POST", "/feedback", { prediction_id: prediction, label: digit });
    setText(element("arm"), "Thank you. The report has it.");
  } catch (error) {
    setText(element("arm"), inWords(error));
    element("labels").hidden = error instanceof Refusal; // else it has not arrived, and can be sent again
  }
  await showReport();
}

for (let digit = 0; digit < 10; digit++) {
  const button = make("button", { type: "button", ariaLabel: `It is a ${digit}` }, String(digit));
  button.addEventListener("click", () => label(digit));
  element("labels").append(button);
}

async function showReport() {
  let report;
  try {
    report = await ask("GET", "/ab-test");
  } catch {
    return; // the pulse says what is wrong
  }
  const rows = Object.entries(report.arms).map(([version, /** @type {any} */ arm]) => {
    const cells = [count(arm.requests), count(arm.labelled), arm.accuracy === null ? "–" : `${(100 * arm.accuracy).toFixed(1)} %`, arm.latency_median_ms === null ? "–" : duration(arm.latency_median_ms)];
    return make("tr", {}, make("th", { scope: "row" }, version), ...cells.map((text) => make("td", {}, text)));
  });
  element("report").replaceChildren(...rows);
}

/** @param {any} health */
function showFigures(health) {
  showLoaded(health);
  for (const [name, text] of Object.entries({
    running: count(health.running),
    calls: count(health.calls),
    rows: count(health.rows),
    "hit-rate": `${(100 * health.cache.hit_rate).toFixed(0)} % of ${count(health.cache.hits + health.cache.misses)}`,
    memory: bytes(health.rss_bytes),
  })) setText(element(name), text);
}

beginPad(draw, () => {
  drawn = next = null;
  latest += 1;
  forgetAnswer();
  cards.empty();
  /** @type {HTMLButtonElement} */ (element("take-part")).disabled = true;
});
begin({
  onRung: () => {
    shown = readable = ""; // perhaps of another server
    showModels();
    showReport();
  },
  onHealth: showFigures,
  onLost: clearFigures,
});
setInterval(showModels, 2000);
