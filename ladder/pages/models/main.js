/** The page of rung 10: one drawing, the prediction of each version, and the versions themselves. */

import { describeError, Refusal, request } from "../shared/client.js";
import { element, make, setText } from "../shared/dom.js";
import { bytes, count, duration } from "../shared/format.js";
import { begin } from "../shared/shell.js";
import { beginPad, Cards, clearFigures, showLoaded } from "./digits.js";
import { labelCells } from "./tables.js";

const cards = new Cards();
/** @type {number[] | null} */ let drawn = null;
/** @type {string | null} */ let prediction = null;
let latest = 0;
let failed = false; // a version gave no prediction for the drawing

/** @param {number[]} features */
async function predict(features) {
  const mine = ++latest;
  failed = false;
  /** @type {HTMLButtonElement} */ (element("take-part")).disabled = false;
  await Promise.all(
    [...cards].map(async ([version, card]) => {
      const started = performance.now();
      try {
        const answer = await request("POST", `/predict?version=${version}`, { features });
        if (mine === latest) card.show(answer, performance.now() - started);
      } catch (error) {
        if (mine !== latest) return;
        failed = true;
        card.say(describeError(error));
      }
    }),
  );
}

/** While requests are in flight, only the newest drawing is kept; it is sent next. */
let busy = false;
/** @type {number[] | null} */ let next = null;

/** @param {number[]} features */
async function draw(features) {
  clearExperiment();
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
let usable = ""; // the versions that can predict

async function showModels() {
  let models;
  try {
    models = await request("GET", "/models");
  } catch {
    shown = usable = "";
    return; // the heartbeat shows the failure
  }
  const description = JSON.stringify(models);
  if (description === shown) return;
  shown = description;
  showVersions(models);
  predictAgain(models);
}

/** Predict again if a version was loaded or unloaded, or failed the last time. @param {any} models */
function predictAgain(models) {
  const versions = Object.entries(models.digits.versions);
  const now = versions.filter(([, /** @type {any} */ info]) => info.state !== "unloaded").map(([version]) => version).join();
  if ((failed || now !== usable) && drawn) predict(drawn); // not because a version became idle: the request would load it
  usable = now;
}

/** Called only after a change: a click that starts on a row is lost if the row is replaced. @param {any} models */
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
  if (info.state === "unloaded") buttons.append(action("Load", `Load ${name} ${version}`, () => request("PUT", path)));
  else if (!isDefault) {
    buttons.append(
      action("Make default", `Make ${name} ${version} the default`, () => request("PUT", `/models/${name}/default`, { version })),
      action("Unload", `Unload ${name} ${version}`, () => request("DELETE", path)),
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
      setText(element("status"), `${label}: ${describeError(error)}`);
    }
    await showModels();
  });
  return button;
}

element("experiment").addEventListener("submit", async (event) => {
  event.preventDefault();
  const user = /** @type {HTMLInputElement} */ (element("user")).value;
  const features = drawn;
  clearExperiment();
  try {
    const answer = await request("POST", `/predict/ab-test?user_id=${encodeURIComponent(user)}`, { features });
    if (features === drawn) showArm(user, answer);
  } catch (error) {
    setText(element("arm"), describeError(error));
  }
  await showReport();
});

/** @param {string} user @param {any} answer */
function showArm(user, answer) {
  prediction = answer.prediction_id;
  const { model_version: version, prediction: digit } = answer;
  setText(
    element("arm"),
    prediction
      ? `${version} is ${user}'s version. It predicts ${digit}. Which digit is it?`
      : `${version} predicts ${digit}, because ${user}'s version is unloaded. The experiment does not count this request.`,
  );
  element("labels").hidden = !prediction;
}

/** The last prediction of the experiment was for another drawing. */
function clearExperiment() {
  prediction = null;
  setText(element("arm"), "");
  element("labels").hidden = true;
}

/** @param {number} digit */
async function label(digit) {
  element("labels").hidden = true; // a prediction accepts one label
  try {
    await request("POST", "/feedback", { prediction_id: prediction, label: digit });
    setText(element("arm"), "Thank you. The report now includes the label.");
  } catch (error) {
    setText(element("arm"), describeError(error));
    element("labels").hidden = error instanceof Refusal; // else it did not arrive, and can be sent again
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
    report = await request("GET", "/ab-test");
  } catch {
    return; // the heartbeat shows the failure
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
  clearExperiment();
  cards.empty();
  /** @type {HTMLButtonElement} */ (element("take-part")).disabled = true;
});
begin({
  onRung: () => {
    shown = usable = ""; // the server may be a new one
    showModels();
    showReport();
  },
  onHealth: showFigures,
  onLost: clearFigures,
});
setInterval(showModels, 2000);
