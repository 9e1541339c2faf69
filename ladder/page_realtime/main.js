/** Rung 11's page: a digit is read while it is drawn, the server is watched, a training run is followed. */

import { Sheet } from "./canvas.js";
import { ask, inWords, reasonIn, Refusal, send } from "./client.js";
import { drawCurve } from "./curve.js";
import { beginPad, Cards, clearFigures, showLoaded } from "./digits.js";
import { element, make, setText } from "./dom.js";
import { bytes, count, duration, median, several } from "./format.js";
import { SAMPLES } from "./samples.js";
import { begin } from "./shell.js";
import { address, Socket } from "./socket.js";
import { readEvents } from "./sse.js";
import { labelCells } from "./tables.js";

const cards = new Cards();
/** @type {Map<string, number>} */ const asked = new Map(); // when, by version: its question is under way
/** @type {number[] | null} */ let drawn = null;
/** @type {number[] | null} */ let sent = null;
let retrying = 0;
const RETRY_PAUSE = 1000;

/* Reading while drawing: at most one question a version is under way, and the next is about the newest drawing. */

const asking = new Socket("/ws/predict", (answer) => {
  const started = asked.get(answer.id);
  asked.delete(answer.id);
  if (answer.error) {
    if (drawn) cards.get(answer.id)?.say(reasonIn(answer));
    retrying ||= setTimeout(() => {
      retrying = 0;
      showVersions();
    }, RETRY_PAUSE);
  } else if (drawn && started !== undefined) {
    cards.get(answer.id)?.show(answer, performance.now() - started);
  }
  if (asked.size === 0 && drawn !== sent) read();
}, () => {
  asked.clear();
  read();
}, () => {
  if (drawn) cards.empty("the connection to the server is lost");
});

function read() {
  if (!drawn || asked.size || !asking.open) return;
  sent = drawn;
  for (const version of cards.keys()) {
    asked.set(version, performance.now());
    asking.send({ id: version, version, features: drawn, probabilities: true });
  }
}

async function showVersions() {
  let models;
  try {
    models = await ask("GET", "/models");
  } catch {
    return; // the pulse says what is wrong
  }
  for (const [version, /** @type {any} */ info] of Object.entries(models.digits.versions)) {
    if (info.state === "unloaded") cards.remove(version);
    else cards.add(version, info.about);
  }
  for (const version of cards.keys()) if (!models.digits.versions[version]) cards.remove(version);
  sent = null;
  read();
}

/* The monitor. */

new Socket("/ws/monitor", (figures) => {
  const latency = (/** @type {number | null} */ value) => (value === null ? "–" : duration(value));
  for (const [name, text] of Object.entries({
    rate: figures.requests_per_second.toFixed(1),
    p50: latency(figures.latency_p50_ms),
    p99: latency(figures.latency_p99_ms),
    cpu: `${figures.cpu_percent.toFixed(0)} %`,
    memory: bytes(figures.rss_bytes),
    connections: count(Object.values(figures.connections).reduce((sum, one) => sum + one, 0)),
  })) setText(element(name), text);
});

/* Training. */

const curve = new Sheet(element("curve"));
/** @type {import("./curve.js").Epoch[]} */ let epochs = [];
/** @type {AbortController | null} */ let training = null;
curve.resized = () => drawCurve(curve, epochs);

element("training").addEventListener("submit", async (event) => {
  event.preventDefault();
  const wanted = /** @type {HTMLInputElement} */ (element("epochs")).value;
  training = new AbortController();
  epochs = [];
  showButtons();
  try {
    const response = await send("POST", `/train/stream?epochs=${wanted}`, undefined, training.signal);
    if (!response.ok || !response.body) throw new Refusal(reasonIn(await response.json()));
    let trained = false;
    for await (const events of readEvents(response.body)) {
      for (const one of events) {
        takeTraining(one);
        trained ||= one.name === "trained";
      }
    }
    if (!trained) throw new Refusal("the stream broke off");
  } catch (error) {
    const left = /** @type {Error} */ (error).name === "AbortError";
    setText(element("progress"), left ? `stopped after ${several(epochs.length, "epoch")}` : inWords(error));
  }
  training = null;
  showButtons();
});
element("stop").addEventListener("click", () => training?.abort());

/** @param {import("./sse.js").ServerSentEvent} event */
function takeTraining(event) {
  if (event.name === "epoch") {
    const epoch = JSON.parse(event.data);
    epochs.push(epoch);
    setText(element("progress"), `epoch ${epoch.epoch} of ${epoch.epochs}`);
    setText(element("loss"), epoch.loss.toFixed(3));
    setText(element("accuracy"), `${(100 * epoch.accuracy).toFixed(1)} %`);
    drawCurve(curve, epochs);
  } else if (event.name === "trained") {
    const { version, accuracy } = JSON.parse(event.data);
    setText(element("progress"), `done: ${version} reads ${(100 * accuracy).toFixed(1)} % correctly, and is served`);
  } else if (event.name === "error") {
    throw new Refusal(reasonIn(JSON.parse(event.data)));
  }
}

function showButtons() {
  /** @type {HTMLButtonElement} */ (element("train")).disabled = training !== null;
  /** @type {HTMLButtonElement} */ (element("stop")).disabled = training === null;
}

/* Events: the browser reconnects by itself, and says what it has seen last. */

const happening = new EventSource("/stream/events");
for (const name of ["loaded", "unloaded", "idle", "default", "gap"]) {
  happening.addEventListener(name, (event) => {
    const { data, lastEventId } = /** @type {MessageEvent} */ (event);
    const text = name === "gap" ? "some events were missed" : `${JSON.parse(data).version}: ${name}`;
    const row = make("li", {}, `${new Date().toLocaleTimeString()}  ${text}`);
    row.dataset.id = lastEventId;
    element("events").prepend(row);
    element("no-events").hidden = true;
    while (element("events").children.length > 100) element("events").lastElementChild?.remove();
    showVersions();
  });
}

/* The three transports, as this browser sees them; bytes on the wire and the server's time are the demo's. */

const TIMES = 200;

async function showMeasured() {
  let measured;
  try {
    measured = await ask("GET", "/page/measured.json");
  } catch {
    return; // the pulse says what is wrong, and comes back here when it is over
  }
  const { figures, machine, command } = measured;
  for (const [way, name] of Object.entries({ http: "plain HTTP", socket: "WebSocket", events: "SSE" })) {
    const cells = element("transports").querySelectorAll(`[data-way=${way}] td`);
    cells[2].textContent = `${count(figures[name].down_bytes)} + ${count(figures[name].up_bytes)}`;
    cells[3].textContent = duration(figures[name].cpu_ms);
  }
  setText(element("measured"), `Bytes, headers and framing included, as a relay counted them, and processor time: ${command} on ${machine.processor}, ${several(machine.cores, "core")}.`);
}

/** The digits of the data set, each a little different, for the cache knows equal ones. */
function rows() {
  return Array.from({ length: TIMES }, (_, number) => {
    const row = [...SAMPLES[number % 10]];
    row[0] = Math.random();
    return row;
  });
}

/** @returns {Promise<number[]>} */
async function byHttp() {
  const times = [];
  for (const features of rows()) {
    const started = performance.now();
    await ask("POST", "/predict?version=v2", { features });
    times.push(performance.now() - started);
  }
  return times;
}

/** @returns {Promise<number[]>} */
function bySocket() {
  return new Promise((resolve, reject) => {
    /** @type {number[]} */ const times = [];
    const waiting = rows();
    let started = 0;
    const socket = new WebSocket(address("/ws/predict"));
    const next = () => {
      const features = waiting.pop();
      if (!features) {
        socket.close();
        resolve(times);
        return;
      }
      started = performance.now();
      socket.send(JSON.stringify({ features, version: "v2" }));
    };
    socket.onopen = next;
    socket.onmessage = (event) => {
      times.push(performance.now() - started);
      const answer = JSON.parse(event.data);
      if (!answer.error) return next();
      socket.close();
      reject(new Refusal(reasonIn(answer)));
    };
    socket.onclose = () => reject(new Refusal("the WebSocket was closed"));
  });
}

/** One request for all: no answer has a round trip of its own, there is only the time of the whole. @returns {Promise<number[]>} */
async function byEvents() {
  let answers = 0;
  const started = performance.now();
  const response = await send("POST", "/predict/stream?version=v2", { instances: rows() });
  if (!response.ok || !response.body) throw new Refusal(reasonIn(await response.json()));
  for await (const events of readEvents(response.body)) {
    const failed = events.find((event) => event.name === "error");
    if (failed) throw new Refusal(reasonIn(JSON.parse(failed.data)));
    answers += events.filter((event) => event.data !== "[DONE]").length;
  }
  if (answers < TIMES) throw new Refusal("the stream broke off");
  return [performance.now() - started];
}

element("measure").addEventListener("click", async () => {
  const button = /** @type {HTMLButtonElement} */ (element("measure"));
  button.disabled = true;
  setText(element("status"), "");
  try {
    for (const [way, talk] of Object.entries({ http: byHttp, socket: bySocket, events: byEvents })) {
      const times = await talk();
      const cells = element("transports").querySelectorAll(`[data-way=${way}] td`);
      if (way !== "events") cells[0].textContent = duration(median(times));
      cells[1].textContent = duration(times.reduce((sum, one) => sum + one, 0));
    }
  } catch (error) {
    setText(element("status"), inWords(error));
  }
  button.disabled = false;
});

labelCells(element("transports"));
beginPad((features) => {
  drawn = [...features];
  read();
}, () => {
  drawn = null;
  cards.empty();
});
begin({
  onRung: () => {
    showVersions();
    showMeasured();
  },
  onHealth: showLoaded,
  onLost: clearFigures,
});
