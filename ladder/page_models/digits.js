/** What the pages of the predicting rungs have in common: the pad and its examples, and what a version reads. */

import { element, make, setText } from "./dom.js";
import { duration, several } from "./format.js";
import { Pad } from "./pad.js";
import { SAMPLES } from "./samples.js";

const NOTHING = "nothing drawn yet";

/** @param {{model: string}} health */
export function showLoaded(health) {
  setText(element("model"), `${several(health.model.split(", ").length, "version")} in memory`);
}

/** What a server that is gone said last is not true any more. */
export function clearFigures() {
  for (const figure of document.querySelectorAll(".tiles dd")) figure.textContent = "–";
}

/** The pad with its buttons. @param {(features: number[]) => void} onChange @param {() => void} onClear */
export function beginPad(onChange, onClear) {
  const pad = new Pad(element("pad"), element("seen"), onChange);
  element("clear").addEventListener("click", () => {
    pad.clear();
    onClear();
  });
  SAMPLES.forEach((features, digit) => {
    const button = make("button", { type: "button", ariaLabel: `A handwritten ${digit} of the data set` }, String(digit));
    button.addEventListener("click", () => pad.show([...features]));
    element("samples").append(button);
  });
}

/** What a version reads, and how sure it is. */
export class Card {
  /** @param {string} version @param {string} about */
  constructor(version, about) {
    this.digit = make("output", { className: "digit", ariaLabel: `${version} reads` }, "–");
    this.note = make("p", { className: "note" }, NOTHING);
    const bars = Array.from({ length: 10 }, (_, digit) => make("li", {}, make("i"), String(digit)));
    this.bars = make("ol", { className: "bars", ariaHidden: "true", hidden: true }, ...bars);
    const title = make("h3", {}, version);
    this.element = make("article", { className: "card" }, title, make("p", { className: "about" }, about), this.digit, this.note, this.bars);
    this.element.dataset.version = version;
  }

  /** @param {{prediction: number, confidence: number, probabilities?: number[]}} answer @param {number} milliseconds */
  show(answer, milliseconds) {
    setText(this.digit, String(answer.prediction));
    setText(this.note, `${(100 * answer.confidence).toFixed(1)} % sure, after ${duration(milliseconds)}`);
    this.bars.hidden = !answer.probabilities;
    answer.probabilities?.forEach((share, digit) => {
      /** @type {HTMLElement} */ (this.bars.children[digit].firstElementChild).style.height = `${100 * share}%`;
    });
  }

  /** @param {string} text */
  say(text) {
    setText(this.digit, "–");
    setText(this.note, text);
    this.bars.hidden = true;
  }
}

/** A card for each version, by its name. @extends {Map<string, Card>} */
export class Cards extends Map {
  /** @param {string} version @param {string} about */
  add(version, about) {
    if (this.has(version)) return;
    const card = new Card(version, about);
    this.set(version, card);
    element("cards").append(card.element);
  }

  /** @param {string} version */
  remove(version) {
    this.get(version)?.element.remove();
    this.delete(version);
  }

  /** The drawing, or the server, is gone. */
  empty(text = NOTHING) {
    for (const card of this.values()) card.say(text);
  }
}
