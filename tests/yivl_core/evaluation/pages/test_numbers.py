from typing import Any

import pytest

from yivl_core.evaluation.pages.numbers import (
    render_difference,
    render_interval,
    render_own_value,
    render_p,
    render_range,
    render_size,
    render_value,
)


def plain(html: str) -> str:
    return html.replace("\N{NO-BREAK SPACE}", " ").replace('<span class="range">', "").replace("</span>", "")


def interval(low: float | None, high: float | None) -> dict[str, Any]:
    return {"low": low, "high": high, "method": "none, one <cluster>"}


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (render_value(0.12345, "rate"), "12.35 %"),
        (render_value(1.5, "rate"), "150.00 %"),
        (render_value(27.456, "score"), "27.46"),
        (render_value(None, "share"), "–"),
        (render_own_value(1.0, "share"), "yes"),
        (render_own_value(0.0, "share"), "no"),
        (render_own_value(None, "share"), "–"),
        (render_own_value(0.25, "mean"), "25.00 %"),
        (render_interval(interval(0.1, 0.25), "share"), "10.00 to 25.00 %"),
        (render_interval(interval(1.0, 2.0), "score"), "1.00 to 2.00"),
        (render_interval(interval(None, None), "share"), '<span class="muted">none, one &lt;cluster&gt;'),
        (render_range(interval(-0.1, 0.25), "share"), "−10.00 to +25.00"),
        (render_range(interval(-0.000001, 0.0), "share"), "0.00 to 0.00"),
        (render_range(interval(-1.0, 2.0), "score"), "−1.00 to +2.00"),
        (render_difference(-0.0216, "rate"), "−2.16 points"),
        (render_difference(0.0, "rate"), "0.00 points"),
        (render_difference(3.456, "score"), "+3.46"),
        (render_difference(None, "score"), "–"),
        (render_size(0.0, "share"), "–"),
        (render_size(None, "share"), "–"),
        (render_size(0.01, "share"), "1.00 points"),
        (render_p(None), "–"),
        (render_p(1.0), "1.000"),
        (render_p(0.0499), "0.050"),
        (render_p(0.0012), "0.0012"),
        (render_p(0.00009), "&lt; 0.0001"),
    ],
)
def test_figures_are_written_as_people_read_them(shown: str, told: str) -> None:
    assert plain(shown) == told
