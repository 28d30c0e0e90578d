import pytest

from tasks.progress import describe, remaining, watcher, watching
from yivl_core.progress import Progress


def test_a_line_tells_stage_count_figures_and_message():
    progress = Progress(stage="train", done=40, total=120, unit="step", figures={"loss": 0.53123, "rate": 1e-4}, message="slow")
    assert describe(progress) == "train: 40/120 steps, loss 0.5312, rate 0.0001, slow"
    assert describe(Progress(stage="infer", done=7, total=9, unit="record", figures={"failed": 1234}, remaining_s=90)) == (
        "infer: 7/9 records, failed 1,234, 1.5 min left"
    )
    assert describe(Progress(stage="read", done=7, total=None, unit="record")) == "read: 7 records"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, ""), (0.0, ""), (0.4, "0 s left"), (89, "89 s left"), (125, "2.1 min left"), (5399, "90 min left"),
     (7200, "2 h left"), (40 * 3600, "1.7 d left")],
)  # fmt: skip
def test_what_is_left_is_told_in_the_unit_that_fits(seconds, words):
    assert remaining(Progress(stage="infer", done=1, total=2, unit="record", remaining_s=seconds)) == words


def test_watching_ends_with_its_block():
    seen: list[Progress] = []
    progress = Progress(stage="train", done=1, total=2, unit="step")
    with watching(seen.append):
        watcher.get()(progress)
    watcher.get()(progress)
    assert seen == [progress]
