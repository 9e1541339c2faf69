/** Bytes as hexadecimal digits, and the SHA-256 of a file. */

/** @param {Uint8Array} bytes */
export function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {ArrayBuffer} content */
export async function sha256(content) {
  return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", content)));
}

/** Browsers offer hashing only in a secure context: https or localhost. */
export const CAN_HASH = Boolean(globalThis.crypto?.subtle);
