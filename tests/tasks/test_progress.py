from tasks.progress import describe, watcher, watching
from yivl_core.progress import Progress


def test_a_line_tells_stage_count_figures_and_message():
    progress = Progress(stage="train", done=40, total=120, unit="step", figures={"loss": 0.53123, "rate": 1e-4}, message="slow")
    assert describe(progress) == "train: 40/120 steps, loss 0.5312, rate 0.0001, slow"
    assert describe(Progress(stage="read", done=7, total=None, unit="record")) == "read: 7 records"


def test_watching_ends_with_its_block():
    seen: list[Progress] = []
    progress = Progress(stage="train", done=1, total=2, unit="step")
    with watching(seen.append):
        watcher.get()(progress)
    watcher.get()(progress)
    assert seen == [progress]
