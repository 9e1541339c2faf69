/** What the pages of the predicting rungs have in common: header, heartbeat, pad, examples. */

import { describeRung } from "./client.js";
import { setText } from "./dom.js";
import { duration } from "./format.js";
import { Heartbeat, Strip } from "./heartbeat.js";
import { Pad } from "./pad.js";
import { SAMPLES } from "./samples.js";

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @returns {T}
 */
export const element = (id) => /** @type {T} */ (document.getElementById(id));

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Partial<HTMLElementTagNameMap[K]>} [properties]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** The rung's name, and a heart that beats. @param {(health: any) => void} onHealth @param {() => void} onBack */
export function begin(onHealth, onBack) {
  const heartbeat = new Heartbeat((health) => {
    setText(element("model"), `${health.model.split(", ").length} versions in memory`);
    onHealth(health);
  });
  const strip = new Strip(element("heartbeat"), heartbeat);
  heartbeat.onLost = () => {
    setText(element("lost"), `The server has given no answer since ${new Date().toLocaleTimeString()}. Still asking.`);
    element("lost").hidden = false;
  };
  heartbeat.onBack = () => {
    element("lost").hidden = true;
    introduce();
    onBack();
  };
  introduce();
  heartbeat.start();
  const slow = matchMedia("(prefers-reduced-motion: reduce)");
  let drawn = 0;
  const frame = (/** @type {number} */ now) => {
    if (now - drawn >= (slow.matches ? 1000 : 45)) {
      drawn = now;
      strip.draw();
      heartbeat.forget(performance.now() - 60_000);
    }
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

async function introduce() {
  let rung;
  try {
    rung = await describeRung();
  } catch {
    return; // the heartbeat says what is wrong, and comes back here when it is over
  }
  document.title = `Rung ${rung.number}: ${rung.name}`;
  document.documentElement.dataset.rung = rung.number;
  for (const name of /** @type {const} */ (["number", "name", "idea", "source"])) setText(element(name), rung[name]);
}

/** The pad with its buttons. @param {(features: number[]) => void} onChange @param {() => void} onClear */
export function beginPad(onChange, onClear) {
  const pad = new Pad(element("pad"), element("seen"), onChange);
  element("clear").addEventListener("click", () => {
    pad.clear();
    onClear();
  });
  SAMPLES.forEach((features, digit) => {
    const button = make("button", { type: "button", textContent: String(digit) });
    button.ariaLabel = `A handwritten ${digit} of the data set`;
    button.addEventListener("click", () => pad.show([...features]));
    element("samples").append(button);
  });
  return pad;
}

/** A version's card: what it reads, how sure it is. @param {string} version @param {string} about */
export function makeCard(version, about) {
  const digit = make("output", { className: "digit", textContent: "–" });
  digit.ariaLabel = `${version} reads`;
  const note = make("p", { className: "note", textContent: "nothing drawn yet" });
  const bars = make("ol", { className: "bars" });
  bars.ariaHidden = "true";
  for (let number = 0; number < 10; number++) bars.append(make("li", {}, make("i"), String(number)));
  const card = make("article", { className: "card" }, make("h3", { textContent: version }), make("p", { className: "about", textContent: about }), digit, note, bars);
  card.dataset.version = version;
  return {
    card,
    /** @param {{prediction: number, confidence: number, probabilities?: number[]}} answer @param {number} milliseconds */
    show(answer, milliseconds) {
      setText(digit, String(answer.prediction));
      setText(note, `${(100 * answer.confidence).toFixed(1)} % sure, after ${duration(milliseconds)}`);
      bars.hidden = !answer.probabilities;
      answer.probabilities?.forEach((share, number) => {
        /** @type {HTMLElement} */ (bars.children[number].firstElementChild).style.height = `${100 * share}%`;
      });
    },
    /** @param {string} text */
    say(text) {
      setText(digit, "–");
      setText(note, text);
      bars.hidden = true;
    },
  };
}
