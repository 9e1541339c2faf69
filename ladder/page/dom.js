/** The few things that every part of the page does to the document. */

/**
 * Leave the layout alone where nothing has changed.
 * @param {HTMLElement} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
