/** Tables whose rows are blocks on a narrow screen, where each cell says itself what column it is of. */

/** Said again, for some browsers take a table whose parts are shown as blocks for no table. */
const ROLES = {
  "thead, tbody": "rowgroup",
  tr: "row",
  td: "cell",
  "thead th": "columnheader",
  "tbody th": "rowheader",
};

/** @param {HTMLElement} body of the table */
export function labelCells(body) {
  const table = /** @type {HTMLTableElement} */ (body.parentElement);
  table.setAttribute("role", "table");
  for (const [parts, role] of Object.entries(ROLES)) {
    for (const part of table.querySelectorAll(parts)) part.setAttribute("role", role);
  }
  const titles = [...table.querySelectorAll("thead th")].map((title) => title.textContent ?? "");
  for (const cell of body.querySelectorAll("td")) cell.dataset.label = titles[cell.cellIndex];
}
