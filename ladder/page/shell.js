/** What every page begins with: the rung by name, its pulse, and a word when the server is gone. */

import { describeRung } from "./client.js";
import { element, setText } from "./dom.js";
import { Heartbeat, Strip } from "./heartbeat.js";

/**
 * @typedef {import("./client.js").Rung} Rung
 * @typedef {import("./client.js").Health} Health
 */

const RUNGS = ["01", "02", "03", "04", "05", "10", "11", "12"];
const PICTURE = 45; // milliseconds: the strip moves on by a pixel or two at a time,
const CALM_PICTURE = 1000; // or, with reduced motion, a little each second
const KEPT = 60_000; // milliseconds of pulse: more than the widest strip shows

const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

/**
 * @param {object} page
 * @param {(rung: Rung) => void} [page.onRung] called at the start, and when a server is there again
 * @param {(health: Health, at: number) => void} [page.onHealth] called with each answer of /health
 * @param {() => void} [page.onLost]
 * @param {() => number} [page.keepFrom] since when the pulse is still needed, however long ago that is
 */
export function begin({ onRung = () => {}, onHealth = () => {}, onLost = () => {}, keepFrom = () => Infinity }) {
  const heartbeat = new Heartbeat((health, at) => {
    if (health.rung === document.documentElement.dataset.rung) onHealth(health, at); // another one has other figures
  });
  const strip = new Strip(element("heartbeat"), heartbeat);
  heartbeat.onLost = () => {
    setText(element("lost"), `The server has given no answer since ${new Date().toLocaleTimeString()}. Still asking.`);
    element("lost").hidden = false;
    onLost();
  };
  heartbeat.onBack = () => {
    element("lost").hidden = true;
    introduce(onRung); // another rung may have taken the place
  };
  drawLadder();
  introduce(onRung);
  heartbeat.start();
  draw(strip, keepFrom);
  return { heartbeat, strip };
}

/** The rails, and a step for each rung, the first at the foot; the style sheet marks the one that is served. */
function drawLadder() {
  const steps = RUNGS.map((rung, index) => `<path data-rung="${rung}" d="M7 ${82.5 - 10.5 * index}h30"/>`);
  element("ladder").innerHTML = `<path class="rail" d="M7 2v88M37 2v88"/>${steps.join("")}`;
}

/** @param {(rung: Rung) => void} onRung */
async function introduce(onRung) {
  let rung;
  try {
    rung = await describeRung();
  } catch {
    return; // the pulse says what is wrong, and comes back here when it is over
  }
  const root = document.documentElement;
  root.dataset.page ??= rung.page;
  if (root.dataset.page !== rung.page) {
    location.reload(); // this page is not that rung's
    return;
  }
  document.title = `Rung ${rung.number}: ${rung.name}`;
  root.dataset.rung = rung.number;
  for (const part of /** @type {const} */ (["number", "name", "idea", "source"])) setText(element(part), rung[part]);
  onRung(rung);
}

/**
 * @param {Strip} strip
 * @param {() => number} keepFrom
 */
function draw(strip, keepFrom) {
  let drawn = 0;
  const frame = (/** @type {number} */ now) => {
    if (now - drawn >= (reducedMotion.matches ? CALM_PICTURE : PICTURE)) {
      drawn = now;
      strip.draw();
      strip.heartbeat.forget(Math.min(performance.now() - KEPT, keepFrom()));
    }
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}
