/** The page of rung 11: predictions while a digit is drawn, the monitor, training, transports and events. */

import { beginPad, Cards, clearFigures, showLoaded } from "../models/digits.js";
import { SAMPLES } from "../models/samples.js";
import { labelCells } from "../models/tables.js";
import { Sheet } from "../shared/canvas.js";
import { describeError, reasonIn, Refusal, request, send } from "../shared/client.js";
import { element, make, setText } from "../shared/dom.js";
import { bytes, count, duration, median, plural } from "../shared/format.js";
import { begin } from "../shared/shell.js";
import { readEvents } from "../shared/sse.js";
import { drawCurve } from "./curve.js";
import { address, Socket } from "./socket.js";

const cards = new Cards();
/** @type {Map<string, number>} */ const inFlight = new Map(); // when the request was sent, by version
/** @type {number[] | null} */ let drawn = null;
/** @type {number[] | null} */ let sent = null;
let retrying = 0;
const RETRY_PAUSE = 1000;

/* Predictions while drawing: at most one request per version is in flight, and the next one has the newest drawing. */

const predictions = new Socket("/ws/predict", (answer) => {
  const started = inFlight.get(answer.id);
  inFlight.delete(answer.id);
  if (answer.error) {
    if (drawn) cards.get(answer.id)?.say(reasonIn(answer));
    retrying ||= setTimeout(() => {
      retrying = 0;
      showVersions();
    }, RETRY_PAUSE);
  } else if (drawn && started !== undefined) {
    cards.get(answer.id)?.show(answer, performance.now() - started);
  }
  if (inFlight.size === 0 && drawn !== sent) predict();
}, () => {
  inFlight.clear();
  predict();
}, () => {
  if (drawn) cards.empty("the connection to the server is lost");
});

function predict() {
  if (!drawn || inFlight.size || !predictions.open) return;
  sent = drawn;
  for (const version of cards.keys()) {
    inFlight.set(version, performance.now());
    predictions.send({ id: version, version, features: drawn, probabilities: true });
  }
}

async function showVersions() {
  let models;
  try {
    models = await request("GET", "/models");
  } catch {
    return; // the heartbeat shows the failure
  }
  for (const [version, /** @type {any} */ info] of Object.entries(models.digits.versions)) {
    if (info.state === "unloaded") cards.remove(version);
    else cards.add(version, info.about);
  }
  for (const version of cards.keys()) if (!models.digits.versions[version]) cards.remove(version);
  sent = null;
  predict();
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
curve.redraw = () => drawCurve(curve, epochs);

element("training").addEventListener("submit", async (event) => {
  event.preventDefault();
  const number = /** @type {HTMLInputElement} */ (element("epochs")).value;
  training = new AbortController();
  epochs = [];
  showButtons();
  try {
    const response = await send("POST", `/train/stream?epochs=${number}`, undefined, training.signal);
    if (!response.ok || !response.body) throw new Refusal(reasonIn(await response.json()));
    let trained = false;
    for await (const events of readEvents(response.body)) {
      for (const one of events) {
        showTraining(one);
        trained ||= one.name === "trained";
      }
    }
    if (!trained) throw new Refusal("the stream ended early");
  } catch (error) {
    const stopped = /** @type {Error} */ (error).name === "AbortError";
    setText(element("progress"), stopped ? `stopped after ${plural(epochs.length, "epoch")}` : describeError(error));
  }
  training = null;
  showButtons();
});
element("stop").addEventListener("click", () => training?.abort());

/** @param {import("../shared/sse.js").ServerSentEvent} event */
function showTraining(event) {
  if (event.name === "epoch") {
    const epoch = JSON.parse(event.data);
    epochs.push(epoch);
    setText(element("progress"), `epoch ${epoch.epoch} of ${epoch.epochs}`);
    setText(element("loss"), epoch.loss.toFixed(3));
    setText(element("accuracy"), `${(100 * epoch.accuracy).toFixed(1)} %`);
    drawCurve(curve, epochs);
  } else if (event.name === "trained") {
    const { version, accuracy } = JSON.parse(event.data);
    setText(element("progress"), `done: ${version} predicts ${(100 * accuracy).toFixed(1)} % correctly, and is served`);
  } else if (event.name === "error") {
    throw new Refusal(reasonIn(JSON.parse(event.data)));
  }
}

function showButtons() {
  /** @type {HTMLButtonElement} */ (element("train")).disabled = training !== null;
  /** @type {HTMLButtonElement} */ (element("stop")).disabled = training === null;
}

/* Events: the browser reconnects automatically, and tells the server the last event that it received. */

const modelEvents = new EventSource("/stream/events");
for (const name of ["loaded", "unloaded", "idle", "default", "gap"]) {
  modelEvents.addEventListener(name, (event) => {
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

/* The three transports, measured in this browser. Bytes on the wire and processor time come from the demo. */

const TIMES = 200;

async function showMeasured() {
  let measured;
  try {
    measured = await request("GET", "/page/realtime/measured.json");
  } catch {
    return; // the heartbeat shows the failure, and calls this again when the server responds
  }
  const { figures, machine, command } = measured;
  for (const [transport, name] of Object.entries({ http: "plain HTTP", socket: "WebSocket", events: "SSE" })) {
    const cells = element("transports").querySelectorAll(`[data-way=${transport}] td`);
    cells[2].textContent = `${count(figures[name].down_bytes)} + ${count(figures[name].up_bytes)}`;
    cells[3].textContent = duration(figures[name].cpu_ms);
  }
  setText(element("measured"), `A relay counted the bytes, with headers and framing. Bytes and processor time were measured by ${command} on ${machine.processor}, ${plural(machine.cores, "core")}.`);
}

/** Digits from the data set, each changed a little: equal ones would be cache hits. */
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
    await request("POST", "/predict?version=v2", { features });
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
      const message = JSON.parse(event.data);
      if (!message.error) return next();
      socket.close();
      reject(new Refusal(reasonIn(message)));
    };
    socket.onclose = () => reject(new Refusal("the WebSocket was closed"));
  });
}

/** One request for all: there is no round trip per prediction, only the total time. @returns {Promise<number[]>} */
async function byEvents() {
  let received = 0;
  const started = performance.now();
  const response = await send("POST", "/predict/stream?version=v2", { instances: rows() });
  if (!response.ok || !response.body) throw new Refusal(reasonIn(await response.json()));
  for await (const events of readEvents(response.body)) {
    const failed = events.find((event) => event.name === "error");
    if (failed) throw new Refusal(reasonIn(JSON.parse(failed.data)));
    received += events.filter((event) => event.data !== "[DONE]").length;
  }
  if (received < TIMES) throw new Refusal("the stream ended early");
  return [performance.now() - started];
}

element("measure").addEventListener("click", async () => {
  const button = /** @type {HTMLButtonElement} */ (element("measure"));
  button.disabled = true;
  setText(element("status"), "");
  try {
    for (const [transport, measure] of Object.entries({ http: byHttp, socket: bySocket, events: byEvents })) {
      const times = await measure();
      const cells = element("transports").querySelectorAll(`[data-way=${transport}] td`);
      if (transport !== "events") cells[0].textContent = duration(median(times));
      cells[1].textContent = duration(times.reduce((sum, one) => sum + one, 0));
    }
  } catch (error) {
    setText(element("status"), describeError(error));
  }
  button.disabled = false;
});

labelCells(element("transports"));
beginPad((features) => {
  drawn = [...features];
  predict();
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
