"""The demo as a person runs it: the model of the repository learns handwriting, and that is what is told."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flows import demo as demo_module
from flows.configuration import DemoConfig
from yivl_core.errors import CheckpointError, DatasetError, YivlError

pytestmark = [pytest.mark.flows, pytest.mark.slow]


@pytest.fixture(scope="module")
def printed(demo_folder: Path) -> str:
    return (demo_folder / "stdout").read_text()


@pytest.fixture(scope="module")
def summary(demo_folder: Path, printed: str) -> dict[str, Any]:
    """What the demo's own run found, whoever else has worked in the folder since."""
    found = re.search(r"^summary (.*)$", printed, re.MULTILINE)
    assert found, (demo_folder / "stderr").read_text()
    loaded: dict[str, Any] = json.loads(Path(found[1]).read_text())
    return loaded


def test_it_reads_handwriting_that_the_base_does_not(summary: dict[str, Any]) -> None:
    before, after = summary["base_evaluation"], summary["evaluation"]
    assert (before["num_samples"], before["num_failed"], after["num_samples"], after["num_failed"]) == (200, 0, 200, 0)
    # Another processor rounds differently, as if with another seed: 92 to 94.5 % were seen.
    assert after["exact_match"] >= 0.9 or after["cer"] <= before["cer"] / 3
    assert after["cer"] < 0.05
    assert 0.1 < before["exact_match"] < after["exact_match"] - 0.2, "the base reads, but print"


def test_what_was_gained_is_told_at_the_end(summary: dict[str, Any], printed: str) -> None:
    was, now = (round(200 * summary[name]["exact_match"]) for name in ("base_evaluation", "evaluation"))
    cer = f"CER {summary['base_evaluation']['cer']:.4f} -> {summary['evaluation']['cer']:.4f}"
    assert f"change  {now - was} more of 200 records exact ({was} -> {now}), {cer}; better\n" in printed


def test_nothing_is_warned_of(summary: dict[str, Any], demo_folder: Path) -> None:
    stages = {line.partition(":")[0] for line in (demo_folder / "stderr").read_text().splitlines()[1:]}
    assert stages == {"validate", "measure", "train", "export", "infer"}


def test_the_page_shows_both_answers_beside_the_images(summary: dict[str, Any]) -> None:
    html = Path(summary["evaluation"]["output"], "report.html").read_text("utf-8")
    assert html.count("<article") == html.count('src="data:image/') == 200
    for name in ("base_evaluation", "evaluation"):
        assert f"{100 * summary[name]['cer']:.2f}\N{NO-BREAK SPACE}%" in html


@pytest.mark.parametrize(("name", "error", "lost"), [("STRIPS", DatasetError, "data"), ("MODEL", CheckpointError, "model")])
def test_where_the_repository_is_not_beside_the_code_it_says_so(
    name: str, error: type[YivlError], lost: str, prefect_api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_module, name, tmp_path / "lost")
    with pytest.raises(error, match=rf"lost: the demo's {lost} is not there; clone the repository and install it with `pip inst"):
        demo_module.demo(DemoConfig(output=str(tmp_path / "work")))
    assert not (tmp_path / "work").exists()
