"""The pieces of a self-contained HTML page: one style sheet, tables, figures as data, no script, no request."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

_STYLE = """
:root { --ink: #1f2933; --muted: #5f6c7b; --line: #dde3ea; --soft: #f5f7fa; --accent: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 48px 0 6px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 24px 0 4px; }
p { margin: 6px 0 12px; max-width: 76ch; }
.eyebrow { color: var(--accent); font-size: 12px; font-weight: 600; letter-spacing: 0.08em; text-transform: uppercase; margin: 0 0 4px; }
.lead { color: var(--muted); font-size: 16px; }
.note { color: var(--muted); font-size: 13.5px; }
.banner { background: #fff6e5; border-left: 4px solid #d98a1f; border-radius: 4px; padding: 12px 16px; margin: 20px 0; max-width: none; }
.alarm { background: #fdecec; border-left-color: #c0392b; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(122px, 1fr)); gap: 12px; margin: 24px 0 0; padding: 0; }
.facts div { background: var(--soft); border-radius: 8px; padding: 12px 12px; }
.facts dt { color: var(--muted); font-size: 12.5px; }
.facts dd { margin: 2px 0 0; font-size: 18px; font-weight: 600; font-variant-numeric: tabular-nums; }
figure { margin: 16px 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption { color: var(--muted); font-size: 13.5px; max-width: 86ch; }
.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; min-width: 62%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: var(--muted); border-bottom: 1.5px solid var(--ink); padding: 6px 10px;
  vertical-align: bottom; }
td { text-align: right; border-bottom: 1px solid var(--line); padding: 6px 10px; white-space: nowrap; }
th.left, td.left { text-align: left; }
td.wrap { white-space: normal; min-width: 22ch; overflow-wrap: anywhere; }
tbody tr:hover { background: var(--soft); }
code { font: 0.92em ui-monospace, "DejaVu Sans Mono", monospace; }
footer { margin-top: 56px; color: var(--muted); font-size: 13px; border-top: 1px solid var(--line); padding-top: 12px; }
@media print { main { max-width: none; padding: 0; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole document around `body`, pieces of HTML that are already escaped."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}<style>{_STYLE}</style></head>\n<body><main>\n'
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def element(tag: str, text: str, css: str = "") -> str:
    """<tag class=css>text</tag>, the text escaped."""
    attribute = f' class="{css}"' if css else ""
    return f"<{tag}{attribute}>{escape(text)}</{tag}>"


def figure(svg: str, description: str, caption: str) -> str:
    """An SVG as data inside the page, with a description for those who cannot see it."""
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    image = f'<img alt="{escape(description, quote=True)}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}{element('figcaption', caption)}</figure>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Name and value, as tiles."""
    tiles = "".join(f"<div>{element('dt', name)}{element('dd', value)}</div>" for name, value in pairs)
    return f'<dl class="facts">{tiles}</dl>'


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, wrap: int | None = None) -> str:
    """A table whose first `left` columns hold words and the others numbers; column `wrap` may break its lines."""

    def cells(tag: str, row: Sequence[str]) -> str:
        made = []
        for column, text in enumerate(row):
            css = " ".join(name for name, on in (("left", column < left), ("wrap", column == wrap and tag == "td")) if on)
            made.append(element(tag, text, css))
        return f"<tr>{''.join(made)}</tr>"

    head, body = cells("th", headings), "".join(cells("td", row) for row in rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
