/**
 * The latency of /health: a probe is due ten times per second, and each one counts.
 *
 * Only one request is in flight at a time. Probes that are due before its response share that response, each
 * with its own wait. So a server that is blocked for one second makes ten probes wait, not one.
 */

import { colour, Sheet } from "./canvas.js";
import { getHealth } from "./client.js";
import { setText } from "./dom.js";
import { duration, median } from "./format.js";

/** @typedef {import("./client.js").Health} Health */
/** @typedef {{due: number, answered: number | null, lost: boolean}} Beat */

const INTERVAL = 100;
const SLOW = 100;
const UNANSWERED = 2000; // after this wait the strip says "no response"
const TIMEOUT = 60_000;
const SPEED = 0.09; // of the strip, in pixels per millisecond

export class Heartbeat {
  /** @param {(health: Health, at: number) => void} onHealth */
  constructor(onHealth) {
    /** @type {Beat[]} */ this.beats = [];
    /** @type {Beat[]} */ this.waiting = [];
    /** @type {number | null} */ this.lostSince = null;
    this.onHealth = onHealth;
    this.onLost = () => {};
    this.onBack = () => {};
  }

  start() {
    this.beat();
    setInterval(() => this.beat(), INTERVAL);
  }

  beat() {
    if (document.hidden) return; // browsers slow down the timers of hidden pages
    const beat = { due: performance.now(), answered: null, lost: false };
    this.beats.push(beat);
    this.waiting.push(beat);
    if (this.waiting.length === 1) this.send();
  }

  async send() {
    let health;
    try {
      health = await getHealth(AbortSignal.timeout(TIMEOUT));
    } catch {
      this.settle(true);
      return;
    }
    this.settle(false);
    this.onHealth(health, performance.now());
  }

  /** @param {boolean} lost */
  settle(lost) {
    const now = performance.now();
    for (const beat of this.waiting) Object.assign(beat, { answered: now, lost });
    const [first] = this.waiting;
    this.waiting = [];
    if (lost && this.lostSince === null) {
      this.lostSince = first.due;
      this.onLost();
    } else if (!lost && this.lostSince !== null) {
      this.lostSince = null;
      this.onBack();
    }
  }

  /** How long the oldest probe without a response has waited. */
  get silence() {
    return this.waiting.length ? performance.now() - this.waiting[0].due : 0;
  }

  /**
   * The probes that were due in a period, as soon as each has a response or is lost.
   * @param {number} from
   * @param {number} to
   */
  async during(from, to) {
    const within = this.beats.filter((beat) => beat.due >= from && beat.due <= to);
    while (within.some((beat) => beat.answered === null)) await new Promise((done) => setTimeout(done, INTERVAL / 4));
    return within;
  }

  /** Remove old probes. @param {number} before */
  forget(before) {
    const first = this.beats.findIndex((beat) => beat.due >= before);
    if (first > 0) this.beats.splice(0, first);
  }
}

/** @param {Beat} beat */
export function wait(beat) {
  return (beat.answered ?? performance.now()) - beat.due;
}

/** @param {Beat} beat */
function kind(beat) {
  if (beat.lost || (beat.answered === null && wait(beat) > UNANSWERED)) return "lost";
  return wait(beat) > SLOW ? "slow" : "good";
}

/**
 * Median and longest wait of the probes with a response, and how many have none.
 * @param {Beat[]} beats
 */
export function waits(beats) {
  const answered = beats.filter((beat) => !beat.lost).map(wait);
  return {
    probes: beats.length,
    lost: beats.length - answered.length,
    p50: answered.length ? median(answered) : null,
    max: answered.length ? Math.max(...answered) : null,
  };
}

/** The strip: a beat for each response, and a flat line while there is none. */
export class Strip {
  /**
   * @param {HTMLElement} panel
   * @param {Heartbeat} heartbeat
   */
  constructor(panel, heartbeat) {
    this.panel = panel;
    this.heartbeat = heartbeat;
    this.sheet = new Sheet(/** @type {HTMLCanvasElement} */ (panel.querySelector("canvas")));
    this.reading = /** @type {HTMLElement} */ (panel.querySelector(".reading"));
    /** @type {{from: number, to: number | null} | null} */ this.run = null;
    this.nextText = 0; // when the text may change again
  }

  draw() {
    const now = performance.now();
    const context = this.sheet.clear();
    const { width, height } = this.sheet;
    const x = (/** @type {number} */ time) => width - (now - time) * SPEED;
    const shown = this.heartbeat.beats.filter((beat) => x(beat.answered ?? now) > -INTERVAL);
    this.describe(shown);
    if (this.run) {
      context.fillStyle = colour("run");
      const from = Math.max(0, x(this.run.from));
      context.fillRect(from, 0, Math.max(0, x(this.run.to ?? now) - from), height);
      context.fillStyle = colour("muted");
      context.font = `11px ${getComputedStyle(this.sheet.canvas).fontFamily}`;
      context.textBaseline = "alphabetic";
      if (x(this.run.to ?? now) > 30) context.fillText("run", from + 5, 13);
    }
    const firsts = firstOfEachAnswer(shown);
    firsts.forEach((beat, number) => {
      const next = Math.min(firsts[number + 1]?.due ?? now, beat.due + 2 * INTERVAL);
      if (kind(beat) === "good") drawPulse(context, x(beat.due), beat.answered && x(beat.answered), x(next), height);
      else drawFlat(context, kind(beat), x(beat.due), x(beat.answered ?? now), height, wait(beat));
    });
  }

  /** Show the state as text and as an attribute. @param {Beat[]} shown */
  describe(shown) {
    const { silence, lostSince } = this.heartbeat;
    const last = shown.findLast((beat) => beat.answered !== null);
    const text =
      lostSince !== null || silence > SLOW
        ? `no response for ${duration(performance.now() - (lostSince ?? performance.now() - silence))}`
        : last
          ? `response in ${duration(wait(last))}`
          : "no response yet";
    const state = lostSince !== null || silence > UNANSWERED ? "lost" : silence > SLOW ? "slow" : "good";
    // A figure that changes ten times per second cannot be read.
    if (state === "good" && this.panel.dataset.state === state && performance.now() < this.nextText) return;
    this.nextText = performance.now() + 500;
    this.panel.dataset.state = state;
    setText(this.reading, text);
  }
}

/**
 * The first of the beats that share a response; it waited longest.
 * @param {Beat[]} beats
 */
function firstOfEachAnswer(beats) {
  return beats.filter((beat, number) => number === 0 || beats[number - 1].answered !== beat.answered);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {number} from
 * @param {number | null} beat where the response arrived
 * @param {number} to
 * @param {number} height
 */
function drawPulse(context, from, beat, to, height) {
  const base = Math.round(height * 0.68);
  context.strokeStyle = colour("good");
  context.lineWidth = 1.5;
  context.lineJoin = "round";
  context.beginPath();
  context.moveTo(from, base);
  if (beat !== null) {
    context.lineTo(beat, base);
    context.lineTo(beat + 1.5, height * 0.2);
    context.lineTo(beat + 3, height * 0.84);
    context.lineTo(beat + 4.5, base);
  }
  context.lineTo(Math.max(to, (beat ?? from) + 4.5), base);
  context.stroke();
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {"slow" | "lost" | string} name
 * @param {number} from
 * @param {number} to
 * @param {number} height
 * @param {number} milliseconds
 */
function drawFlat(context, name, from, to, height, milliseconds) {
  const base = Math.round(height * 0.68);
  context.fillStyle = colour(name);
  context.fillRect(from, base - 2, Math.max(to - from, 2), 4);
  const text = name === "slow" ? duration(milliseconds) : "no response";
  context.font = `600 12px ${getComputedStyle(context.canvas).fontFamily}`;
  const width = context.measureText(text).width;
  if (width + 8 < to - Math.max(from, 0)) {
    context.fillStyle = colour(name === "slow" ? "slow-ink" : name);
    context.textBaseline = "alphabetic";
    context.fillText(text, (Math.max(from, 0) + to - width) / 2, base - 7);
  }
}
