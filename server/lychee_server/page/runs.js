// The table of what was asked in this tab.

import * as words from "./words.js";

const KEPT = 20;

/** Put a row on top of the table and show it. */
export function addRun(section, { asked, budget, summary, answer, dense, verdict }) {
  const body = section.querySelector("tbody");
  const cells = [
    asked,
    budget,
    words.count(summary?.context_tokens),
    words.percent(summary?.attended_fraction),
    words.percent(summary?.recall),
    words.duration(answer.firstSeconds),
    words.duration(answer.tokenSeconds),
    words.duration(dense?.tokenSeconds),
    verdict,
  ];
  const row = document.createElement("tr");
  cells.forEach((text, index) => {
    const cell = document.createElement(index ? "td" : "th");
    if (!index) cell.scope = "row";
    cell.textContent = text;
    row.append(cell);
  });
  body.prepend(row);
  while (body.rows.length > KEPT) body.lastElementChild.remove();
  section.hidden = false;
}
