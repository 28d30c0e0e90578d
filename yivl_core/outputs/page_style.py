"""The looks that the pages share, in parts. Every colour stands beside a word or sign that says the same."""


def base_style(*, light: str, dark: str) -> str:
    """Colours, page and headings.

    Args:
        light: colours of one page alone, as CSS declarations.
        dark: the same colours where the reader prefers a dark page.
    """
    return f"{_LIGHT}{_indented(light, 2)}{_DARK}{_indented(dark, 4)}{_PAGE}"


def _indented(lines: str, num_spaces: int) -> str:
    return "".join(" " * num_spaces + line.strip() + "\n" for line in lines.strip().splitlines())


_LIGHT = """\
:root {
  --page: #f6f7f9; --card: #ffffff; --ink: #1a1d21; --muted: #5c6570; --line: #dfe3e8;
  --good: #0a6b3d; --good-soft: #dff3e6; --bad: #a8201a; --bad-soft: #fde4e1;
"""
_DARK = """\
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1d2126; --ink: #e8eaed; --muted: #a0a9b4; --line: #343a42;
    --good: #7fdba6; --good-soft: #163a28; --bad: #ff9d94; --bad-soft: #47201d;
"""
_PAGE = """\
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 48px; }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 40px 0 12px; font-size: 1.25rem; }
"""
NOTE_STYLE = """\
.lead { margin: 8px 0 0; color: var(--muted); font-size: 1.05rem; }
.note, .meaning, .muted { color: var(--muted); }
.note { margin: 10px 0; font-size: 0.9rem; }
"""
CARD_STYLE = """\
.card { min-width: 0; padding: 14px 16px; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.card p, dl, dd { margin: 0; }
.pictures { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 8px; margin-bottom: 10px; }
.pictures img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 4px; background: #ffffff; }
.gone { padding: 16px; background: var(--line); color: var(--ink); border-radius: 4px; font-size: 0.9rem; }
.card .question { margin-bottom: 8px; color: var(--muted); font-size: 0.92rem; white-space: pre-wrap; }
"""
TAG_STYLE = """\
.tag { padding: 1px 7px; border-radius: 9px; font-weight: 600; white-space: nowrap; }
"""
