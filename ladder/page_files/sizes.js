/** Sizes as text. */

const UNITS = ["B", "KiB", "MiB", "GiB"];

/** @param {number} size */
export function bytes(size) {
  const power = Math.min(UNITS.length - 1, Math.floor(Math.log2(Math.max(size, 1)) / 10));
  const value = size / 1024 ** power;
  return `${value >= 100 || power === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[power]}`;
}

/** @param {ArrayBuffer} content */
export async function sha256(content) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Browsers hash only on pages that nobody can have tampered with: https, or this machine. */
export const CAN_HASH = Boolean(globalThis.crypto?.subtle);
