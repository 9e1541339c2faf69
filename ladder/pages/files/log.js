/** Follow the server's log. */

import { make } from "../shared/dom.js";

const MOST_LINES = 300;

/** @param {HTMLElement} list */
export function followLog(list) {
  const source = new EventSource("/logs/stream?last=50");
  source.onopen = () => list.replaceChildren(); // after a reconnect the server sends the last lines again
  source.onmessage = (event) => {
    const atTheEnd = list.scrollTop + list.clientHeight >= list.scrollHeight - 4;
    const line = list.appendChild(make("li", {}, event.data));
    if (/ 206 bytes /.test(event.data)) line.className = "part";
    if (/ [45]\d\d (bytes |\d+ B )/.test(event.data)) line.className = "refused";
    while (list.childElementCount > MOST_LINES) list.firstElementChild?.remove();
    if (atTheEnd) list.scrollTop = list.scrollHeight;
  };
}
