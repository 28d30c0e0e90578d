"""An evaluation report as one HTML page: one file, no request, and whole without its script, which only chooses among samples.

A pure function of the report and the pictures. Everything that models and users wrote is shown as text.
"""

from collections.abc import Mapping
from typing import Any

from yivl_core.evaluation.pages.comparison import render_comparison
from yivl_core.evaluation.pages.figures import render_figures
from yivl_core.evaluation.pages.heading import render_heading
from yivl_core.evaluation.pages.origin import render_origin
from yivl_core.evaluation.pages.plots import render_plots
from yivl_core.evaluation.pages.room import room_of
from yivl_core.evaluation.pages.samples import render_samples
from yivl_core.evaluation.pages.script import SCRIPT
from yivl_core.evaluation.pages.slices import render_slices
from yivl_core.evaluation.pages.style import STYLE
from yivl_core.outputs.page import num, render_document
from yivl_core.outputs.thumbnails import Thumbnail

MARK = '<meta name="generator" content="yivl evaluation report 2">'

_CONTROL_BYTES = 100_000  # for what stands around the cards


def render_page(report: dict[str, Any], pictures: Mapping[str, Thumbnail] | None) -> str:
    """The page.

    Args:
        report: as report.json has it.
        pictures: by the sha256 of their image, from `load_pictures`; None: they were not asked for.
    """
    sections = {
        "figures": ("Figures", render_figures(report)),
        "plots": ("At a glance", render_plots(report)),
        "slices": ("Slices", render_slices(report)),
        "comparison": ("Beside the baseline", render_comparison(report)),
        "origin": ("Origin", render_origin(report)),
    }
    shown = {place: section for place, section in sections.items() if section[1]}
    links = [*((place, name) for place, (name, _) in shown.items()), ("samples", "Samples")]
    body = [render_heading(report, links), *(html for _, html in shown.values())]
    num_bytes = sum(len(part.encode()) for part in (*body, STYLE, SCRIPT))
    body.append(render_samples(report, pictures, room_of(len(report["samples"])) - num_bytes - _CONTROL_BYTES))
    title = f"Evaluation report: {num(report['rows']['compared'], 'row')}"
    return render_document(body, title=title, mark=MARK, style=STYLE, script=SCRIPT)
