/** What the pages of rungs 10 and 11 share: the drawing pad, its examples, and a card per version. */

import { element, make, setText } from "../shared/dom.js";
import { duration, plural } from "../shared/format.js";
import { Pad } from "./pad.js";
import { SAMPLES } from "./samples.js";

const NO_DRAWING = "no drawing yet";

/** @param {{model: string}} health */
export function showLoaded(health) {
  setText(element("model"), `${plural(health.model.split(", ").length, "version")} in memory`);
}

/** Remove the last figures of a server that no longer responds. */
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
    const button = make("button", { type: "button", ariaLabel: `A handwritten ${digit} from the data set` }, String(digit));
    button.addEventListener("click", () => pad.show([...features]));
    element("samples").append(button);
  });
}

/** The prediction of a version, and its confidence. */
export class Card {
  /** @param {string} version @param {string} about */
  constructor(version, about) {
    this.digit = make("output", { className: "digit", ariaLabel: `Prediction of ${version}` }, "–");
    this.note = make("p", { className: "note" }, NO_DRAWING);
    const bars = Array.from({ length: 10 }, (_, digit) => make("li", {}, make("i"), String(digit)));
    this.bars = make("ol", { className: "bars", ariaHidden: "true", hidden: true }, ...bars);
    const title = make("h3", {}, version);
    this.element = make("article", { className: "card" }, title, make("p", { className: "about" }, about), this.digit, this.note, this.bars);
    this.element.dataset.version = version;
  }

  /** @param {{prediction: number, confidence: number, probabilities?: number[]}} answer @param {number} milliseconds */
  show(answer, milliseconds) {
    setText(this.digit, String(answer.prediction));
    setText(this.note, `${(100 * answer.confidence).toFixed(1)} % confidence, ${duration(milliseconds)}`);
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

  /** Show a text instead of the predictions. */
  empty(text = NO_DRAWING) {
    for (const card of this.values()) card.say(text);
  }
}
