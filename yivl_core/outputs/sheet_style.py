"""The looks of the contact sheet. Every colour stands beside words that say the same."""

from yivl_core.outputs.page_style import CARD_STYLE, NOTE_STYLE, TAG_STYLE, base_style

_LIGHT = "--frame: #eceff2; --warn: #7a4b00; --warn-soft: #fdeed2;"
_DARK = "--frame: #262b31; --warn: #f2c47c; --warn-soft: #453314;"
# Han characters get their Chinese shapes where the system leaves the choice. Cards share the heights of their parts with those
# beside them (subgrid), so that pictures, answers and feet stand in lines.
_SHEET = """\
body { font-family: system-ui, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; }
main { max-width: 1640px; }
header { display: flex; flex-wrap: wrap; align-items: end; justify-content: space-between; gap: 16px 32px; }
header h1 { flex-basis: 100%; }
header .lead { margin: -12px 0 0; }
.outcomes { display: flex; flex-wrap: wrap; gap: 8px; margin: 0; padding: 0; list-style: none; }
.outcomes li { padding: 3px 12px; border-radius: 16px; background: var(--tone-soft); color: var(--tone); font-size: 0.92rem; }
.outcomes strong { font-size: 1.05rem; font-variant-numeric: tabular-nums; }
.stop { --tone: var(--good); --tone-soft: var(--good-soft); }
.length { --tone: var(--warn); --tone-soft: var(--warn-soft); }
.error { --tone: var(--bad); --tone-soft: var(--bad-soft); }
.outcomes .none { background: var(--frame); color: var(--muted); }
.shared { margin-top: 24px; padding: 14px 18px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.shared div + div { margin-top: 10px; }
.shared h2 { margin: 0 0 2px; color: var(--muted); font-size: 0.85rem; font-weight: 600; }
.shared h2 span { font-weight: 400; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 290px), 1fr)); gap: 18px; }
.card { display: grid; grid-row: span 3; grid-template-rows: subgrid; row-gap: 0; }
.card { padding: 0; border-radius: 10px; overflow: hidden; }
.card > * { min-width: 0; }
.card .pictures { justify-content: center; align-items: stretch; gap: 12px; }
.card .pictures { min-height: 96px; margin: 0; padding: 12px; background: var(--frame); }
.pictures p { align-self: center; }
figure { display: flex; flex-direction: column; align-items: center; min-width: 0; max-width: 100%; margin: 0; }
.pictures img, .gone { margin: auto; }
.several figure { max-width: calc(50% - 6px); }
.several img { width: auto; max-height: 150px; }
figcaption { margin-top: 8px; font-size: 0.82rem; line-height: 1.35; text-align: center; white-space: pre-wrap; }
.words { padding: 12px 16px; }
.card .words > * + * { margin-top: 10px; }
.card .question, .answer, .message, .asked, dd, td { overflow: hidden; white-space: pre-wrap; }
.card .question { margin-bottom: 0; }
.card .long, .shared .long { max-height: 20em; overflow-y: auto; }
.message { margin-top: 6px; font-size: 0.92rem; }
details { color: var(--muted); font-size: 0.88rem; }
summary { cursor: pointer; }
dl { font-size: 0.88rem; }
dl div { margin-top: 6px; padding-left: 10px; border-left: 3px solid var(--line); }
dt { color: var(--muted); font-size: 0.78rem; }
.card .id { padding: 8px 16px; border-top: 1px solid var(--line); color: var(--muted); font-size: 0.8rem; }
.card .tag { display: inline-block; background: var(--tone-soft); color: var(--tone); font-size: 0.82rem; white-space: normal; }
.sign { color: var(--muted); font-size: 0.75em; user-select: none; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 5px 18px 5px 0; text-align: left; vertical-align: baseline; }
th { color: var(--muted); font-weight: 400; white-space: nowrap; }
@media (max-width: 560px) {
  main { padding: 20px 12px 32px; }
  th { white-space: normal; }
}
@media print {
  .card { break-inside: avoid; }
  .card .long, .shared .long { max-height: none; }
}
"""

STYLE = base_style(light=_LIGHT, dark=_DARK) + NOTE_STYLE + CARD_STYLE + TAG_STYLE + _SHEET
