"""The frame of our static pages: style for light and dark, and the few lines of script that sort tables."""

from html import escape

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1a1a1a; --quiet: #5c5c5c; --line: #d4d4d4; --tint: #f4f5f7;
  --link: #005a9e; --good: #0a6b3d; --bad: #a33b00;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0578d;
  --c4: #b87a00; --c5: #2b8cc4; --c6: #8c6d31; --c7: #6b6b6b; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e8e8e8; --quiet: #a8a8a8; --line: #3a3d42;
  --tint: #1f2226; --link: #7cc0f5; --good: #5fd39a; --bad: #ff9b66;
  --c0: #4fa8dd; --c1: #ff8a3d; --c2: #2fc79a; --c3: #e39cc4;
  --c4: #f0b429; --c5: #8fd0f7; --c6: #c9a862; --c7: #a0a0a0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.25rem 4rem; max-width: 90rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { font-size: 1.3rem; margin-top: 2.5rem; } h3 { font-size: 1.05rem; }
a { color: var(--link); } a:focus-visible, button:focus-visible, .scroll:focus-visible, summary:focus-visible {
  outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; background: var(--paper); padding: .5rem; }
.scroll { overflow-x: auto; margin: 1rem 0 .5rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; } tbody th { font-weight: 500; }
tbody tr:nth-child(even) { background: var(--tint); }
.number { text-align: right; } .absent { color: var(--quiet); } .matches { color: var(--good); }
.differs { color: var(--bad); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button::after { content: " \\2195"; color: var(--quiet); }
th[aria-sort=ascending] button::after { content: " \\2191"; color: var(--ink); }
th[aria-sort=descending] button::after { content: " \\2193"; color: var(--ink); }
th button:focus-visible { outline: 3px solid var(--link); }
abbr { text-decoration: none; cursor: help; font-size: .8em; vertical-align: super; line-height: 0; }
figure { margin: 1.5rem 0 .5rem; max-width: 46rem; } figcaption { font-size: .9rem; color: var(--quiet); }
svg.plot { width: 100%; height: auto; display: block; } svg.plot text { fill: var(--ink); }
aside { border-left: 4px solid var(--line); padding: .1rem 1rem; background: var(--tint); }
aside h2 { margin-top: .6rem; }
ul.notes { font-size: .85rem; list-style: none; padding-left: 0; color: var(--quiet); } code { font-size: .9em; }
summary { cursor: pointer; color: var(--link); }
@media print { th button::after { content: none; } }
"""

SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, row = head.parentElement, body = row.closest("table").tBodies[0];
  const column = [...row.children].indexOf(head), up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of row.children) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = line => { const cell = line.children[column], value = cell.dataset.sort ?? cell.textContent.trim();
    if (cell.dataset.sort === undefined && cell.classList.contains("absent")) return null;
    return value === "" || value === "\\u2013" ? null : isNaN(value) ? value : Number(value); };
  const order = (a, b) => a === null || b === null ? (a === null) - (b === null)
    : (typeof a === "number" && typeof b === "number" ? a - b
      : String(a).localeCompare(String(b), "en", {numeric: true}))
      * (up ? 1 : -1);
  [...body.rows].map(line => [key(line), line]).sort((a, b) => order(a[0], b[0])).forEach(pair => body.append(pair[1]));
});
"""


def frame(title: str, body: str) -> str:
    """Return a whole page around `body`."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#content">Skip to the content</a>\n<main id="content">\n{body}\n</main>\n'
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
