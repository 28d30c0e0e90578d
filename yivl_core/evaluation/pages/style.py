"""The looks of a report's page. Every colour stands beside a word or sign that says the same."""

from yivl_core.outputs.page_style import CARD_STYLE, NOTE_STYLE, TAG_STYLE, base_style

_LIGHT = """
--warn: #7a4b00; --warn-soft: #fdeed2; --accent: #2459a8; --accent-soft: #e4ecf8; --even-soft: #e9ecf0;
--mended: #1f9d5c; --lost: #d9453b; --stayed-wrong: #e0a458; --stayed-right: #7fb7e0;
"""
_DARK = """
--warn: #f2c47c; --warn-soft: #453314; --accent: #8db8f5; --accent-soft: #22314a; --even-soft: #2a3038;
--mended: #2fb673; --lost: #e8665c; --stayed-wrong: #c98f45; --stayed-right: #4f8fbf;
"""
_TEXT = """\
html { scroll-padding-top: 12px; }
body { font-family: system-ui, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; }
main { max-width: 1280px; }
h2 { margin: 48px 0 12px; padding-top: 4px; font-size: 1.4rem; }
h3 { margin: 26px 0 10px; font-size: 1.05rem; }
h4 { margin: 14px 0 4px; color: var(--muted); font-size: 0.88rem; font-weight: 600; }
code, dd { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: 0.92em; }
abbr { text-decoration: underline dotted var(--muted) 1px; text-underline-offset: 3px; cursor: help; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
.meaning { font-size: 0.85rem; font-weight: 400; }
.better, .worse { font-weight: 600; }
.better { color: var(--good); }
.worse { color: var(--bad); }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.skip { position: absolute; top: -60px; left: 12px; z-index: 2; padding: 8px 14px; background: var(--card); }
.skip:focus { top: 8px; }
summary { padding: 2px 0; cursor: pointer; }
section > details { margin-top: 8px; padding: 10px 16px; background: var(--card); border: 1px solid var(--line); }
section > details, table, figure, .tiles li { border-radius: 10px; }
section > details > summary { font-weight: 600; }
"""
_HEADING = """\
nav ul { display: flex; flex-wrap: wrap; gap: 6px; margin: 18px 0 0; padding: 0; list-style: none; }
nav a { display: block; padding: 4px 13px; border-radius: 16px; background: var(--accent-soft); text-decoration: none; }
nav a:hover { text-decoration: underline; }
.banner { margin-top: 18px; padding: 14px 18px; border-left: 6px solid var(--tone); border-radius: 8px; background: var(--soft); }
.banner p, .banner ul { margin: 4px 0 0; }
.banner ul { padding-left: 22px; }
.banner details { margin-top: 6px; }
.banner .verdict { margin: 0; color: var(--tone); font-size: 1.2rem; font-weight: 650; }
.banner .muted { color: inherit; }
.good { --tone: var(--good); --soft: var(--good-soft); }
.bad { --tone: var(--bad); --soft: var(--bad-soft); }
.warn { --tone: var(--warn); --soft: var(--warn-soft); }
.even { --tone: var(--ink); --soft: var(--even-soft); }
"""
_FIGURES = """\
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 210px), 1fr)); gap: 12px; }
.tiles { margin: 12px 0 0; padding: 0; list-style: none; }
.tiles li { padding: 14px 16px; background: var(--card); border: 1px solid var(--line); }
.tiles strong { display: block; font-size: 1.9rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tiles .name { font-weight: 600; }
.tiles .meaning { display: block; }
.tiles .primary { border: 2px solid var(--accent); }
.tiles .tag { background: var(--accent-soft); color: var(--accent); font-size: 0.78rem; }
.counts { display: flex; flex-wrap: wrap; gap: 8px; margin: 0; padding: 0; list-style: none; }
.counts li { padding: 4px 13px; border-radius: 16px; background: var(--warn-soft); color: var(--warn); }
.counts .none { background: var(--even-soft); color: var(--ink); }
.counts .meaning, .counts .muted { color: inherit; }
table { width: 100%; border-collapse: separate; border-spacing: 0; background: var(--card); border: 1px solid var(--line); }
th, td { padding: 7px 12px; border-top: 1px solid var(--line); text-align: right; vertical-align: baseline; }
th:first-child, .texts td, .texts th, .origin td { text-align: left; }
tbody th { font-weight: 400; }
thead th { border-top: 0; color: var(--muted); font-size: 0.82rem; font-weight: 600; vertical-align: bottom; }
tr:first-child > * { border-top: 0; }
thead + tbody tr:first-child > * { border-top: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.texts td, .origin td { overflow-wrap: anywhere; }
.wide { font-size: 0.92rem; }
.wide .meaning { display: block; }
th, .range { overflow-wrap: normal; }
.range { white-space: nowrap; }
.wide th, .wide td { padding: 7px 9px; }
.origin { margin-top: 10px; border: 0; font-size: 0.86rem; }
.origin th { width: 34%; color: var(--muted); }
.origin td { white-space: pre-wrap; }
.differences { margin: 4px 0; padding-left: 22px; }
.definitions dt { margin-top: 10px; font-weight: 600; }
.definitions dd { margin: 0; font-family: inherit; }
"""
_PLOTS = """\
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); align-items: start; gap: 14px; }
figure { min-width: 0; margin: 0; padding: 14px 18px; background: var(--card); border: 1px solid var(--line); }
figcaption h3 { margin: 0; }
figcaption .note { margin: 2px 0 10px; }
svg { display: block; }
.rows, .rows ul { margin: 0; padding: 0; list-style: none; }
.forest li { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 12px; }
.forest li:has(h4) { display: block; }
.forest .label, .histogram .label { font-size: 0.92rem; }
.told { color: var(--muted); font-size: 0.85rem; font-variant-numeric: tabular-nums; }
.histogram li { display: grid; grid-template-columns: 8em minmax(0, 1fr) 4em; align-items: center; gap: 10px; }
.histogram .told { text-align: right; }
.band { fill: var(--accent-soft); }
.overall { stroke: var(--muted); stroke-dasharray: 3 3; }
.whisker { stroke: var(--accent); stroke-width: 2.5; }
.dot { fill: var(--accent); }
.all .dot { fill: var(--ink); }
.all .whisker { stroke: var(--ink); }
.beyond { fill: var(--accent); font-size: 15px; }
.tick { stroke: var(--muted); }
.axis text { fill: var(--muted); font-size: 12px; }
.bin { fill: var(--accent); }
.perfect { fill: var(--mended); }
.bar { border-radius: 9px; overflow: hidden; }
.bar rect { fill: var(--group); stroke: var(--page); stroke-width: 2px; }
.mended { --group: var(--mended); }
.lost { --group: var(--lost); }
.stayed-wrong { --group: var(--stayed-wrong); }
.stayed-right { --group: var(--stayed-right); }
.groups li { border-top: 4px solid var(--group); }
.groups strong { display: inline; font-size: 1.5rem; }
"""
_CONTROLS = """\
form[hidden], .card[hidden] { display: none; }
form { display: contents; }
.live { display: grid; grid-template: "tools tools" auto "filters cards" 1fr / 250px minmax(0, 1fr); gap: 14px 20px; }
.tools { grid-area: tools; display: flex; flex-wrap: wrap; align-items: center; gap: 8px 16px; }
.live #filters { grid-area: filters; }
.live #cards { grid-area: cards; }
#told { flex: 1 1 12em; margin: 0; font-weight: 600; text-align: right; font-variant-numeric: tabular-nums; }
.search { flex: 1 1 18em; display: flex; align-items: center; gap: 8px; }
.search input { flex: 1; min-width: 0; }
input, select, button { font: inherit; color: inherit; }
select, button, .search input { padding: 6px 10px; background: var(--card); border: 1px solid var(--muted); border-radius: 8px; }
select { max-width: 100%; }
button { cursor: pointer; }
button:hover { background: var(--accent-soft); }
#filters { position: sticky; top: 10px; align-self: start; max-height: calc(100vh - 20px); overflow-y: auto; }
#filters { padding: 10px 14px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
#filters > summary, #filters details > summary, legend { font-weight: 600; }
#filters details { margin-top: 10px; }
fieldset { min-width: 0; margin: 10px 0 0; padding: 0; border: 0; }
legend { padding: 0; }
fieldset label { display: flex; align-items: baseline; gap: 8px; padding: 3px 6px; border-radius: 6px; font-size: 0.92rem; }
fieldset label { cursor: pointer; }
fieldset label:hover, fieldset label:has(:checked) { background: var(--accent-soft); }
fieldset label:has(:disabled) { color: var(--muted); cursor: default; background: none; }
fieldset input { flex: none; margin: 0; accent-color: var(--accent); align-self: center; }
.count { margin-left: auto; color: var(--muted); font-variant-numeric: tabular-nums; }
"""
_CARDS = """\
#cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 14px; }
#cards { align-content: start; align-items: start; }
.card { content-visibility: auto; contain-intrinsic-size: auto 240px; }
.card { border-top: 4px solid var(--group, var(--line)); }
.card .question { margin-bottom: 4px; }
.card dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 12.5em), 1fr)); gap: 0 16px; }
.card dl div { min-width: 0; padding: 6px 0; border-top: 1px solid var(--line); }
.reference { grid-column: 1 / -1; }
.card dt { color: var(--muted); font-size: 0.84rem; }
.card dd { white-space: pre-wrap; }
.long { max-height: 14em; overflow-y: auto; }
.card dd.muted { font-family: inherit; font-size: 0.92rem; }
.raw { margin-top: 4px; font-size: 0.85rem; }
.own { float: right; font-variant-numeric: tabular-nums; }
.card details p { clear: right; }
.right { background: var(--good-soft); color: var(--good); }
.wrong { background: var(--bad-soft); color: var(--bad); }
.plain { background: var(--warn-soft); color: var(--warn); }
mark { background: var(--bad-soft); color: inherit; border-bottom: 2px solid var(--bad); }
del { color: var(--muted); text-decoration: line-through 2px var(--bad); }
.sign { color: var(--muted); font-size: 0.75em; user-select: none; }
.picture { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 4px; background: #fff; }
.store { position: absolute; }
.card .left-out { color: var(--muted); font-size: 0.82rem; }
.card details { padding-top: 6px; border-top: 1px solid var(--line); color: var(--muted); font-size: 0.8rem; }
.card details p { margin-top: 4px; }
"""
_NARROW = """\
@media (max-width: 860px) {
  main { padding: 20px 12px 32px; }
  .live { grid-template: "tools" auto "filters" auto "cards" auto / minmax(0, 1fr); }
  #filters { position: static; max-height: none; }
  #told { text-align: left; }
  .stack, .stack tbody, .stack tr, .stack th, .stack td { display: block; }
  .stack thead { display: none; }
  .stack tr { display: grid; grid-template-columns: 1fr 1fr; gap: 6px 12px; padding: 10px 12px; }
  .stack tr { border-top: 1px solid var(--line); }
  .stack tbody tr:first-child { border-top: 0; }
  .stack tbody tr > *, .stack thead + tbody tr:first-child > * { padding: 0; border: 0; text-align: left; }
  .stack tbody th { grid-column: 1 / -1; font-weight: 650; }
  .stack td { overflow-wrap: anywhere; }
  .stack td::before { content: attr(data-label); display: block; color: var(--muted); font-size: 0.78rem; }
  .origin th, .origin td { padding: 6px; }
  .origin th { overflow-wrap: anywhere; }
}
@media print {
  form, nav, .skip { display: none; }
  .live { display: block; }
  .card { content-visibility: visible; break-inside: avoid; }
  .long { max-height: none; }
}
"""

STYLE = "".join(
    (
        base_style(light=_LIGHT, dark=_DARK),
        _TEXT,
        NOTE_STYLE,
        _HEADING,
        _FIGURES,
        _PLOTS,
        CARD_STYLE,
        _CONTROLS,
        _CARDS,
        TAG_STYLE,
        _NARROW,
    )
)
