import io
import logging

import pytest
from rich.console import Console

from flows import terminal as terminal_module
from flows.terminal import Terminal, WarningHandler
from yivl_core.progress import Progress


def step(done: int, stage: str = "train", **changes) -> Progress:
    return Progress(**{"stage": stage, "done": done, "total": 4, "unit": "step", **changes})


def shown(*steps: Progress, is_terminal: bool = False, width: int = 200) -> str:
    file = io.StringIO()
    with Terminal(Console(file=file, force_terminal=is_terminal, width=width, color_system=None)) as terminal:
        for progress in steps:
            terminal(progress)
    return file.getvalue()


def test_lines_tell_the_first_and_the_last_step_of_each_stage_and_of_each_run_of_it():
    lines = shown(step(0), step(1), step(4), step(0), step(4), step(2, "infer")).splitlines()
    assert lines == ["train: 0/4 steps", "train: 4/4 steps", "train: 0/4 steps", "train: 4/4 steps", "infer: 2/4 steps"]


def test_lines_in_between_come_every_few_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(terminal_module, "LINE_EVERY_S", 0.0)
    assert shown(step(0), step(1), step(2)).splitlines() == ["train: 0/4 steps", "train: 1/4 steps", "train: 2/4 steps"]


def test_a_line_tells_figures_and_message():
    progress = step(1, total=None, figures={"loss": 0.123456}, message="warming up")
    assert shown(progress) == "train: 1 steps, loss 0.1235, warming up\n"


def test_a_new_message_gets_a_line_at_once_and_an_old_one_does_not():
    lines = shown(
        step(0, message="loading"), step(0, message="8 at a time"), step(1, message="8 at a time"), step(2)
    ).splitlines()
    assert lines == ["train: 0/4 steps, loading", "train: 0/4 steps, 8 at a time", "train: 2/4 steps"]


def test_bars_keep_the_latest_figures_of_a_stage():
    text = shown(step(1, figures={"loss": 0.5}, remaining_s=240.0), step(4), is_terminal=True)
    last = [line for line in text.splitlines() if "train" in line][-1]
    assert "✓ train" in last
    assert "4/4 steps" in last
    assert "loss 0.5" in last
    assert "loss 0.5, 4 min left" in text


def test_a_stage_of_unknown_length_is_done_when_the_next_one_begins():
    listing = step(10_000, "list", total=None, unit="file")
    text = shown(listing, is_terminal=True)
    assert "10000 files" in text
    assert "✓" not in text
    assert "✓ list" in shown(listing, step(1), is_terminal=True)


def test_a_narrow_terminal_shows_all_figures():
    figures = {"images_per_s": 123.4, "tokens_per_s": 4567.0, "num_failed": 12.0}
    text = shown(step(1234567, total=9999999, figures=figures, remaining_s=7200.0), is_terminal=True, width=80)
    for part in ("1234567/9999999 steps", "images_per_s 123.4,", "tokens_per_s 4567,", "num_failed 12, 2 h left"):
        assert part in text


def test_a_bar_shows_the_first_figures_and_a_line_all():
    event = step(3, figures=dict.fromkeys(("loss", "samples_per_s", "share_of_peak", "memory_gb", "grad_norm"), 1.0))
    assert "memory_gb 1" in shown(event, is_terminal=True)
    assert "grad_norm" not in shown(event, is_terminal=True)
    assert "memory_gb 1, grad_norm 1" in shown(event)


def log(name: str, level: int, text: str) -> str:
    file = io.StringIO()
    terminal = Terminal(Console(file=file, width=200))
    handler = WarningHandler(terminal)
    record = logging.LogRecord(name, level, __file__, 1, text, None, None)
    if record.levelno >= handler.level:
        handler.handle(record)
    return file.getvalue()


def test_warnings_of_libraries_are_shown_and_news_are_not():
    assert log("some.library", logging.WARNING, "look [out]") == "warning: look [out]\n"
    assert log("some.library", logging.ERROR, "broken") == "error: broken\n"
    assert log("prefect.task_runs", logging.WARNING, "3 records are left out") == "warning: 3 records are left out\n"
    assert log("prefect.task_runs", logging.INFO, "Finished in state Completed()") == ""


def test_what_prefect_says_of_its_own_queues_is_not_shown():
    assert log("APILogWorker", logging.WARNING, "Still processing items: 3 items remaining...") == ""


def test_what_prefect_logs_of_a_failed_run_is_left_to_the_command():
    assert log("prefect.flow_runs", logging.ERROR, "Encountered exception during execution") == ""
