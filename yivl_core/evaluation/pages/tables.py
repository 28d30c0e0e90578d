"""Tables that a narrow screen shows row under row: each cell knows the name of its column."""

from collections.abc import Sequence


def render_table(name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, looks: str = "") -> str:
    """A table whose first column names the rows.

    Args:
        name: what it shows, for who cannot see it; plain words of our own.
        columns: their names, plain words of our own.
        rows: cells as HTML.
        looks: further class names.
    """
    heading = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "\n".join(_row(columns, row) for row in rows)
    return (
        f'<table class="stack {looks}">\n<caption class="unseen">{name}</caption>\n<thead><tr>{heading}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>"
    )


def _row(columns: Sequence[str], row: Sequence[str]) -> str:
    first, *others = row
    cells = "".join(f'<td data-label="{column}">{cell}</td>' for column, cell in zip(columns[1:], others, strict=True))
    return f'<tr><th scope="row">{first}</th>{cells}</tr>'
