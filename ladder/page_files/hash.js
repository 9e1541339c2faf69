/** Bytes as hexadecimal digits, and what a file is known again by. */

/** @param {Uint8Array} bytes */
export function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {ArrayBuffer} content */
export async function sha256(content) {
  return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", content)));
}

/** Browsers hash only on pages that nobody can have tampered with: https, or this machine. */
export const CAN_HASH = Boolean(globalThis.crypto?.subtle);
