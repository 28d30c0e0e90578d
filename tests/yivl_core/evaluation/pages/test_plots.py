"""Places in the plots, worked out by hand: 6 % of the axis are left on either side of it."""

import re
from typing import Any

from yivl_core.evaluation.pages.plots import render_plots


def figure(value: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {"value": value, "n": 9, "interval": {"low": low, "high": high, "method": "m"}}


def report(*figures: dict[str, Any], bins: tuple[int, ...] = ()) -> dict[str, Any]:
    values = [{"value": f"value {place}", "num_rows": 9, "figures": {"cer": one}} for place, one in enumerate(figures)]
    edges = [(0.0, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, None)]
    return {
        "scoring": {"primary": "cer"},
        "figures": {"cer": {"title": "CER", "kind": "rate", "best": "low"} | figure(0.2, 0.1, 0.3)},
        "slices": [{"name": "shop", "values": values}] if values else [],
        "histogram": [{"low": low, "high": high, "num_rows": num} for (low, high), num in zip(edges, bins, strict=False)],
    }


def test_dots_and_lines_stand_where_their_figures_are() -> None:
    html = render_plots(report(figure(0.5, 0.3, 0.6), figure(None, None, None), figure(0.2, 0.1, 0.2)))
    left, width = 0.1 - 0.06 * 0.5, 0.5 * 1.12
    assert re.findall(r'cx="([\d.]+)%"', html) == [f"{100 * (value - left) / width:.2f}" for value in (0.2, 0.5, 0.2)]
    assert f'x1="{100 * (0.3 - left) / width:.2f}%" x2="{100 * (0.6 - left) / width:.2f}%" y1="8"' in html
    assert "50.00\N{NO-BREAK SPACE}%, 30.00 to 60.00\N{NO-BREAK SPACE}%, n 9" in html
    assert "▸" not in html


def test_one_wide_interval_does_not_press_the_others_together() -> None:
    html = render_plots(report(figure(0.2, 0.1, 0.3), figure(0.25, 0.1, 0.3), figure(9.0, 0.1, 16.0)))
    # The slice in the middle reaches 0.1 from 0.2, so the axis ends 3 times that beyond 0.3.
    assert re.findall(r'text-anchor="\w+">([\d.]+)', html)[-3:] == ["10.00", "35.00", "60.00"]
    assert html.count("▸") == 1
    assert html.count("<circle") == 3  # one of all rows; the dot of 9.0 is not to be seen
    assert "900.00" in html


def test_figures_without_spread_are_drawn_too() -> None:
    same = figure(0.2, 0.2, 0.2)
    one = report(same)
    one["figures"]["cer"] |= same
    assert re.findall(r'cx="([\d.]+)%"', render_plots(one)) == ["50.00", "50.00"]


def test_bars_are_as_long_as_they_have_rows() -> None:
    html = render_plots(report(bins=(50, 100, 0, 1)))
    assert re.findall(r'class="(perfect|bin)" y="1" height="14" rx="2" width="([\d.]+)%"', html) == [
        ("perfect", "50.00"),
        ("bin", "100.00"),
        ("bin", "0.00"),
        ("bin", "1.00"),
    ]
    assert re.findall(r'label">([^<]+)<', html.replace("\N{NO-BREAK SPACE}", " ")) == [
        "0 %",
        "0 to 50 %",
        "50 to 100 %",
        "100 % and more",
    ]


def test_nothing_to_draw_is_no_section() -> None:
    assert render_plots(report()) == ""
    undefined = report(figure(0.2, 0.1, 0.3))
    undefined["figures"]["cer"]["value"] = None
    assert render_plots(undefined) == ""
