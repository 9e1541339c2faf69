/** Tables whose rows become blocks on a narrow screen, where each cell carries the title of its column. */

/** Explicit roles: some browsers drop the table's own roles when its parts are displayed as blocks. */
const ROLES = {
  "thead, tbody": "rowgroup",
  tr: "row",
  td: "cell",
  "thead th": "columnheader",
  "tbody th": "rowheader",
};

/** @param {HTMLElement} body the table's body */
export function labelCells(body) {
  const table = /** @type {HTMLTableElement} */ (body.parentElement);
  table.setAttribute("role", "table");
  for (const [parts, role] of Object.entries(ROLES)) {
    for (const part of table.querySelectorAll(parts)) part.setAttribute("role", role);
  }
  const titles = [...table.querySelectorAll("thead th")].map((title) => title.textContent ?? "");
  for (const cell of body.querySelectorAll("td")) cell.dataset.label = titles[cell.cellIndex];
}
