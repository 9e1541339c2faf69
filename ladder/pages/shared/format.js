/** Numbers as text, and the median. */

/** @param {number} milliseconds */
export function duration(milliseconds) {
  if (milliseconds >= 10_000) return `${(milliseconds / 1000).toFixed(1)} s`;
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toFixed(2)} s`;
  return milliseconds >= 10 ? `${Math.round(milliseconds)} ms` : `${milliseconds.toFixed(1)} ms`;
}

/** @param {number} value */
export function count(value) {
  return Math.round(value).toLocaleString("en");
}

/**
 * A number with its noun: "1 token", "2 tokens".
 * @param {number} number
 * @param {string} noun
 */
export function plural(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/**
 * The lower median: the smallest value that at least half of the values do not exceed.
 * @param {number[]} values
 */
export function median(values) {
  const ordered = [...values].sort((a, b) => a - b);
  return ordered[Math.max(0, Math.ceil(ordered.length / 2) - 1)];
}

const UNITS = ["B", "KiB", "MiB", "GiB"];

/** @param {number} size */
export function bytes(size) {
  const power = Math.min(UNITS.length - 1, Math.floor(Math.log2(Math.max(size, 1)) / 10));
  const value = size / 1024 ** power;
  return `${value >= 100 || power === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[power]}`;
}
