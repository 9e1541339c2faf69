/** What every page starts with: the rung in the header, the heartbeat, and a banner while the server is lost. */

import { describeRung } from "./client.js";
import { element, setText } from "./dom.js";
import { Heartbeat, Strip } from "./heartbeat.js";
import { drawLadder } from "./ladder.js";

/**
 * @typedef {import("./client.js").Rung} Rung
 * @typedef {import("./client.js").Health} Health
 */

const FRAME = 45; // milliseconds between two drawings of the strip,
const CALM_FRAME = 1000; // or, if the reader prefers reduced motion, this
const KEPT = 60_000; // milliseconds of probes that are kept: more than the widest strip shows

const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
const page = document.documentElement.dataset.page;
let shownRung = "";

/**
 * @param {object} handlers
 * @param {(rung: Rung) => void} [handlers.onRung] called at the start, and when a server responds again
 * @param {(health: Health, at: number) => void} [handlers.onHealth] called with each response of /health
 * @param {() => void} [handlers.onLost]
 * @param {() => number} [handlers.keepFrom] the time from which probes are needed, even if they are old
 */
export function begin({ onRung = () => {}, onHealth = () => {}, onLost = () => {}, keepFrom = () => Infinity }) {
  const heartbeat = new Heartbeat((health, at) => {
    if (health.rung === shownRung) onHealth(health, at); // another rung has other figures
  });
  const strip = new Strip(element("heartbeat"), heartbeat);
  heartbeat.onLost = () => {
    setText(element("lost"), `No response from the server since ${new Date().toLocaleTimeString()}. Still trying.`);
    element("lost").hidden = false;
    onLost();
  };
  heartbeat.onBack = () => {
    element("lost").hidden = true;
    showRung(onRung); // a server of another rung may have started at this address
  };
  showRung(onRung);
  heartbeat.start();
  draw(strip, keepFrom);
  return { heartbeat, strip };
}

/** @param {(rung: Rung) => void} onRung */
async function showRung(onRung) {
  let rung;
  try {
    rung = await describeRung();
  } catch {
    return; // the heartbeat shows the failure, and calls this again when the server responds
  }
  if (rung.page !== page) {
    location.reload(); // that rung has another page
    return;
  }
  shownRung = rung.number;
  document.title = `Rung ${rung.number}: ${rung.name}`;
  for (const part of /** @type {const} */ (["number", "name", "idea", "source"])) setText(element(part), rung[part]);
  element("docs").hidden = !rung.streams; // rung 01 is a Flask app, which has no /docs
  drawLadder(element("ladder"), rung.tracks, rung.number);
  onRung(rung);
}

/**
 * @param {Strip} strip
 * @param {() => number} keepFrom
 */
function draw(strip, keepFrom) {
  let drawn = 0;
  const frame = (/** @type {number} */ now) => {
    if (now - drawn >= (reducedMotion.matches ? CALM_FRAME : FRAME)) {
      drawn = now;
      strip.draw();
      strip.heartbeat.forget(Math.min(performance.now() - KEPT, keepFrom()));
    }
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}
