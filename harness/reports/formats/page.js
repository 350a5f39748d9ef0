"use strict";
const FEW_ROWS = 8, FEW_COLUMNS = 6;

/* Sorting: a head sorts the column of the body that its data-at names. What has no value sorts last, either way. */
function valueOf(cell) {
  const value = cell.dataset.sort ?? cell.textContent.trim();
  if (cell.dataset.sort === undefined && cell.classList.contains("absent")) return null;
  return value === "" || value === "\u2013" ? null : isNaN(value) ? value : Number(value);
}
function compared(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", {numeric: true});
}
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const pairs = [...body.rows].map(row => [valueOf(row.children[Number(head.dataset.at)]), row]);
  pairs.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : compared(a, b) * (up ? 1 : -1));
  body.append(...pairs.map(pair => pair[1]));
});

/* Filter, choice of columns and rows on demand. Made here, so that a page without scripts shows no dead controls. */
function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
function equip(sheet) {
  const table = sheet.querySelector("table"), rows = [...table.tBodies[0].rows];
  const groups = [...table.tHead.rows[0].cells], aside = rows.filter(row => row.classList.contains("unmeasured"));
  const tools = element("div", {className: "tools"}), count = element("output", {className: "quiet"});
  const filter = element("input", {type: "search", autocomplete: "off", size: 18});
  let all = aside.length === 0 || aside.length === rows.length;
  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(words.every(word => text.includes(word)) && (all || words.length > 0
        || !row.classList.contains("unmeasured")));
      shown += !row.hidden;
    }
    count.textContent = shown === rows.length ? `${rows.length} rows` : `${shown} of ${rows.length} rows`;
  };
  if (rows.length > FEW_ROWS) {
    tools.append(element("label", {}, "Filter ", filter));
    filter.addEventListener("input", show);
  }
  if (groups.length > FEW_COLUMNS) tools.append(columns(table, groups));
  if (!all) {
    const text = () => all ? "Only measured rows" : `Show ${aside.length} rows that were not measured`;
    const more = element("button", {type: "button", textContent: text()});
    more.addEventListener("click", () => { all = !all; more.textContent = text(); show(); });
    tools.append(more);
  }
  if (!tools.childElementCount) return;
  tools.append(count);
  show();
  sheet.insertBefore(tools, sheet.querySelector(".scroll"));
}
function columns(table, groups) {
  const box = element("fieldset", {}, element("legend", {className: "skip", textContent: "Columns shown"}));
  for (const head of groups.slice(1)) {
    const tick = element("input", {type: "checkbox", checked: true});
    tick.addEventListener("change", () => {
      const from = Number(head.dataset.at), to = from + head.colSpan;
      const inside = cell => Number(cell.dataset.at) >= from && Number(cell.dataset.at) < to;
      for (const cell of [...table.tHead.querySelectorAll("th")].filter(inside)) cell.hidden = !tick.checked;
      for (const row of table.tBodies[0].rows) for (let at = from; at < to; at++) row.cells[at].hidden = !tick.checked;
    });
    box.append(element("label", {}, tick, " " + head.textContent));
  }
  const menu = element("details", {}, element("summary", {textContent: "Columns"}), box);
  menu.addEventListener("keydown", event => { if (event.key === "Escape") menu.open = false; });
  return menu;
}
for (const sheet of document.querySelectorAll(".sheet:not(.plain)")) equip(sheet);

/* A link to a folded section unfolds it; printing unfolds all. */
function unfold() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const folded = target && target.closest("details");
  if (folded && !folded.open) { folded.open = true; target.scrollIntoView(); }
}
addEventListener("hashchange", unfold);
unfold();
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details.part")) part.open = true; });
