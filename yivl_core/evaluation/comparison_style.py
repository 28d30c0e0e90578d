"""The looks of the comparison page. Every colour stands beside a word or sign that says the same."""

from yivl_core.outputs.page_style import CARD_STYLE, NOTE_STYLE, TAG_STYLE, base_style

_LIGHT = """
--mended: #1f9d5c; --lost: #d9453b; --stayed-wrong: #e0a458; --stayed-right: #7fb7e0;
--changed: #8a7fd4; --unchanged: #a9b1bb;
"""
_DARK = """
--mended: #2fb673; --lost: #e8665c; --stayed-wrong: #c98f45; --stayed-right: #4f8fbf;
--changed: #958be0; --unchanged: #717a85;
"""
_TEXT = """\
h3 { margin: 28px 0 12px; padding-left: 10px; border-left: 5px solid var(--group); font-size: 1.05rem; }
code, dd { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
"""
_FIGURES = """\
.meaning { font-size: 0.85rem; font-weight: 400; }
table { width: 100%; border-collapse: collapse; background: var(--card); border: 1px solid var(--line); }
th, td { padding: 8px 14px; border-top: 1px solid var(--line); text-align: right; vertical-align: baseline; }
th:first-child, td:first-child, .origin td { text-align: left; }
.origin thead th { text-align: left; }
tbody th { font-weight: 400; }
thead th { border-top: 0; color: var(--muted); font-size: 0.85rem; font-weight: 600; }
.figures { overflow-wrap: normal; }
td { font-variant-numeric: tabular-nums; }
.main th, .main td { font-size: 1.15rem; font-weight: 650; }
abbr { text-decoration: none; }
.better { color: var(--good); }
.worse { color: var(--bad); }
.better, .worse { font-weight: 600; }
.bar { display: flex; gap: 2px; height: 18px; border-radius: 9px; overflow: hidden; }
.bar span { flex-basis: 0; min-width: 3px; background: var(--group); }
.mended { --group: var(--mended); }
.lost { --group: var(--lost); }
.stayed-wrong { --group: var(--stayed-wrong); }
.stayed-right { --group: var(--stayed-right); }
.changed { --group: var(--changed); }
.unchanged { --group: var(--unchanged); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 200px), 1fr)); gap: 12px; }
.tiles { margin: 12px 0 0; padding: 0; list-style: none; }
.tiles li { padding: 12px 14px; background: var(--card); border: 1px solid var(--line); border-top: 4px solid var(--group); }
.tiles strong { font-size: 1.5rem; line-height: 1.1; font-variant-numeric: tabular-nums; }
.tiles .name { font-weight: 600; }
.tiles .meaning { display: block; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); align-items: start; gap: 14px; }
"""
_ANSWERS = """\
dl div { display: grid; grid-template-columns: 150px 1fr; gap: 2px 10px; padding: 6px 0; border-top: 1px solid var(--line); }
dt { color: var(--muted); font-size: 0.85rem; line-height: 1.75; }
.before dt, .after dt { display: grid; grid-template-columns: 4em auto; place-content: start; place-items: start; }
.before .cut, .after .cut { grid-column: 2; }
dd { min-width: 0; max-height: 12em; overflow-y: auto; white-space: pre-wrap; }
"""
_MARKS = """\
.right { background: var(--good-soft); color: var(--good); }
.wrong { background: var(--bad-soft); color: var(--bad); }
.cut { border: 1px solid var(--line); }
mark { background: var(--bad-soft); color: inherit; border-bottom: 2px solid var(--bad); }
del { color: var(--muted); text-decoration: line-through 2px var(--bad); }
dd .sign, .question .sign { color: var(--muted); font-size: 0.75em; user-select: none; }
.card .id { margin-top: 8px; color: var(--muted); font-size: 0.78rem; }
@media (max-width: 560px) {
  main { padding: 20px 12px 32px; }
  th, td { padding: 7px 8px; }
  .figures { font-size: 0.88rem; }
  .main th, .main td { font-size: 0.95rem; }
  .origin { font-size: 0.78rem; }
  .better, .worse { display: block; }
  dl div { grid-template-columns: 138px 1fr; }
}
@media print {
  .card { break-inside: avoid; }
  dd { max-height: none; }
}
"""

STYLE = base_style(light=_LIGHT, dark=_DARK) + _TEXT + NOTE_STYLE + _FIGURES + CARD_STYLE + _ANSWERS + TAG_STYLE + _MARKS
