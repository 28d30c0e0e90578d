"""Several processes with one cache, and processes that are killed. What was asked for is read from the server's own log."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("fetching_process.py")


def start(cache, web, first: int, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), str(cache.files.path), web.url, str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> set[int]:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return {int(line) for line in output.split()}


def serve(web, make_png, count: int, pause_s: float) -> None:
    for number in range(count):
        web.serve(f"/{number}.png", web.answer(body=make_png(number), pause_s=pause_s))


@pytest.mark.slow
def test_processes_at_the_same_time_ask_for_each_url_once(cache, web, make_png):
    serve(web, make_png, 120, pause_s=0.02)
    processes = [start(cache, web, 0, 120) for _ in range(3)]
    assert [finish(process) for process in processes] == [set(range(120))] * 3
    assert Counter(web.paths) == {f"/{number}.png": 1 for number in range(120)}
    assert all(cache.find(f"{web.url}/{number}.png").path.read_bytes() == make_png(number) for number in range(120))


@pytest.mark.slow
@pytest.mark.parametrize("num_done", [1, 37, 90])
def test_after_a_kill_nothing_that_was_finished_is_asked_for_again(cache, web, make_png, num_done):
    serve(web, make_png, 100, pause_s=0.01)
    process = start(cache, web, 0, 100)
    told = [int(process.stdout.readline()) for _ in range(num_done)]
    process.kill()
    process.communicate()
    finished = {number for number in range(100) if cache.find(f"{web.url}/{number}.png")}
    assert set(told) <= finished
    assert len(finished) < 100
    time.sleep(0.1)
    num_requests = Counter(web.paths)
    assert finish(start(cache, web, 0, 100)) == set(range(100))
    again = Counter(web.paths) - num_requests
    assert {int(path[1:-4]) for path in again} == set(range(100)) - finished
    assert set(again.values()) == {1}
    assert all(cache.find(f"{web.url}/{number}.png").path.read_bytes() == make_png(number) for number in range(100))


@pytest.mark.slow
def test_who_waits_for_a_process_that_is_killed_fetches_itself(cache, web, make_png):
    web.serve("/0.png", web.answer(body=make_png(0), pause_s=5), make_png(0))
    first = start(cache, web, 0, 1)
    while not web.requests:
        time.sleep(0.01)
    second = start(cache, web, 0, 1)
    time.sleep(1.5)
    assert len(web.requests) == 1
    first.kill()
    first.communicate()
    assert finish(second) == {0}
    assert len(web.requests) == 2
