"""Laws of scheduling, on random requests and an engine that only counts, which looks at tokens at once or, as on a GPU, late."""

import random
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yivl_core.inference.scheduler import Decode, Generation, Prefill, Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request as the scheduler knows it, and after how many tokens a stop ends it."""

    prompt_tokens: int
    new_tokens: int
    max_new_tokens: int
    answer_tokens: int

    @property
    def slot_tokens(self) -> int:
        return self.prompt_tokens + self.max_new_tokens - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests, the sizes of an engine, how many steps late it looks, and whether it takes requests only when it wants them.

    Some are given up by their number, each before the step of a number.
    """

    jobs: tuple[Job, ...]
    num_rows: int
    cache_tokens: int
    prefill_rows: int
    prefill_tokens: int
    lag: int
    is_lazy: bool = True
    given_up: tuple[tuple[int, int], ...] = ()

    def make_scheduler(self) -> Scheduler:
        return Scheduler(
            num_rows=self.num_rows,
            cache_tokens=self.cache_tokens,
            prefill_rows=self.prefill_rows,
            prefill_tokens=self.prefill_tokens,
        )

    @property
    def group_rows(self) -> int:
        """Rows of a full prefill: as many as are wanted where nothing is there yet."""
        return self.make_scheduler().num_wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What was ordered, who waited and ran before, and who ran after: number -> row and start."""

    kind: Literal["prefill", "decode", "nothing"]
    numbers: tuple[int, ...]
    waiting: tuple[int, ...]
    before: Mapping[int, tuple[int, int]]
    after: Mapping[int, tuple[int, int]]
    is_source_empty: bool


@dataclass(slots=True)
class Run:
    """A load from its first request to its last."""

    load: Load
    scheduler: Scheduler = field(init=False)
    steps: list[Step] = field(default_factory=list)
    num_seen: Counter[int] = field(default_factory=Counter)
    num_scheduled: Counter[int] = field(default_factory=Counter)
    gone: dict[int, int] = field(default_factory=dict)  # given up -> before which step
    _known: dict[int, Generation] = field(default_factory=dict)
    _waiting: list[int] = field(default_factory=list)
    _running: set[int] = field(default_factory=set)
    _ordered: deque[tuple[int, ...]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.scheduler = self.load.make_scheduler()
        most_steps = 100 + 3 * sum(job.max_new_tokens for job in self.load.jobs)
        source, is_more = iter(enumerate(self.load.jobs)), True
        while is_more or self._waiting or self._running:
            is_more = is_more and self._take(source)
            self.scheduler.is_input_over = not is_more
            self._give_up()
            self._order(is_source_empty=not is_more)
            self._look_at()
            assert len(self.steps) < most_steps, "it goes on for ever"

    def _take(self, source: Iterator[tuple[int, Job]]) -> bool:
        while self.scheduler.num_wanted or not self.load.is_lazy:
            item = next(source, None)
            if item is None:
                return False
            number, job = item
            self._known[number] = Generation(
                number=number,
                prompt_tokens=job.prompt_tokens,
                new_tokens=job.new_tokens,
                max_new_tokens=job.max_new_tokens,
            )
            self._waiting.append(number)
            self.scheduler.add(self._known[number])
        return True

    def _give_up(self) -> None:
        for before_step, number in self.load.given_up:
            if before_step == len(self.steps) and number in {*self._waiting, *self._running}:
                self.scheduler.finish(self._known[number])
                self.gone[number] = before_step
                self._waiting = [other for other in self._waiting if other != number]
                self._running.discard(number)

    def _order(self, *, is_source_empty: bool) -> None:
        waiting, before = tuple(self._waiting), self._places()
        ordered = self.scheduler.next_step()
        numbers = tuple(generation.number for generation in ordered.generations) if ordered else ()
        kind: Literal["prefill", "decode", "nothing"] = "nothing"
        if isinstance(ordered, Prefill):
            kind = "prefill"
            self._waiting = [number for number in waiting if number not in numbers]
            self._running |= set(numbers)
        elif isinstance(ordered, Decode):
            kind = "decode"
        self.num_scheduled.update(numbers)
        assert self.scheduler.num_running == len(self._running)
        self.steps.append(
            Step(
                kind=kind,
                numbers=numbers,
                waiting=waiting,
                before=before,
                after=self._places(),
                is_source_empty=is_source_empty,
            )
        )
        if ordered:
            self._ordered.append(numbers)

    def _look_at(self) -> None:
        is_idle = self.steps[-1].kind == "nothing"
        while self._ordered and (is_idle or len(self._ordered) > self.load.lag):
            for number in self._ordered.popleft():
                if number not in self._running:
                    continue
                self.num_seen[number] += 1
                if self.num_seen[number] == self.load.jobs[number].answer_tokens:
                    self.scheduler.finish(self._known[number])
                    self._running.remove(number)
            if is_idle:
                break

    def _places(self) -> dict[int, tuple[int, int]]:
        return {number: (self._known[number].row, self._known[number].start) for number in sorted(self._running)}


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    prompt_tokens, max_new_tokens = draw(st.integers(1, 20)), draw(st.integers(1, 10))
    return Job(
        prompt_tokens=prompt_tokens,
        new_tokens=draw(st.integers(1, prompt_tokens)),
        max_new_tokens=max_new_tokens,
        answer_tokens=draw(st.integers(1, max_new_tokens)),
    )


@st.composite
def loads(draw: st.DrawFn) -> Load:
    given_jobs = tuple(draw(st.lists(jobs(), max_size=25)))
    return Load(
        jobs=given_jobs,
        num_rows=draw(st.integers(1, 14)),
        cache_tokens=max((job.slot_tokens for job in given_jobs), default=1) + draw(st.integers(0, 90)),
        prefill_rows=draw(st.integers(1, 8)),
        prefill_tokens=draw(st.integers(1, 60)),
        lag=draw(st.integers(0, 1)),
        is_lazy=draw(st.booleans()),
        given_up=tuple(draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 24)), max_size=4))),
    )


@given(loads())
def test_every_request_starts_once_and_in_the_order_in_which_they_came(load: Load) -> None:
    run = Run(load)
    started = [number for step in run.steps if step.kind == "prefill" for number in step.numbers]
    never = {number for number in run.gone if number not in started}
    assert started == [number for number in range(len(load.jobs)) if number not in never]


@given(loads())
def test_every_request_gets_its_whole_answer_unless_it_is_given_up(load: Load) -> None:
    run = Run(load)
    for number, job in enumerate(load.jobs):
        if number not in run.gone:
            assert run.num_seen[number] == job.answer_tokens


@given(loads())
def test_no_two_that_run_share_a_row_or_a_token_of_the_cache(load: Load) -> None:
    for step in Run(load).steps:
        rows = [row for row, _ in step.after.values()]
        assert len(rows) == len(set(rows))
        assert set(rows) <= set(range(load.num_rows))
        ends = {start: start + load.jobs[number].slot_tokens for number, (_, start) in step.after.items()}
        assert len(ends) == len(rows)
        assert all(0 <= start < end <= load.cache_tokens for start, end in ends.items())
        assert all(ends[first] <= second for first, second in combinations(sorted(ends), 2))


@given(loads())
def test_row_and_slot_stay_the_same_from_start_to_end(load: Load) -> None:
    places: dict[int, tuple[int, int]] = {}
    for step in Run(load).steps:
        assert all(places.setdefault(number, place) == place for number, place in step.after.items())


@given(loads())
def test_a_prefill_keeps_its_limits_unless_a_prompt_alone_is_longer(load: Load) -> None:
    for step in Run(load).steps:
        if step.kind == "prefill":
            assert 1 <= len(step.numbers) <= load.prefill_rows
            tokens = sum(load.jobs[number].new_tokens for number in step.numbers)
            assert tokens <= load.prefill_tokens or len(step.numbers) == 1


@given(loads())
def test_no_request_is_scheduled_for_more_than_its_limit_nor_further_than_a_stop_is_seen_late(load: Load) -> None:
    run = Run(load)
    for number, job in enumerate(load.jobs):
        most = min(job.max_new_tokens, job.answer_tokens + load.lag)
        assert run.num_scheduled[number] <= most
        assert number in run.gone or run.num_scheduled[number] >= job.answer_tokens


@given(loads())
def test_a_decode_gives_a_token_to_each_that_runs_and_may_have_more_by_row(load: Load) -> None:
    num_scheduled = Counter[int]()
    for step in Run(load).steps:
        if step.kind == "decode":
            unfinished = [number for number in step.before if num_scheduled[number] < load.jobs[number].max_new_tokens]
            assert list(step.numbers) == sorted(unfinished, key=lambda number: step.before[number][0])
        num_scheduled.update(step.numbers)


@given(loads())
def test_there_is_nothing_to_do_only_while_all_that_runs_has_been_ordered_to_its_end(load: Load) -> None:
    num_scheduled = Counter[int]()
    for step in Run(load).steps:
        num_scheduled.update(step.numbers)
        if step.kind == "nothing":
            assert all(num_scheduled[number] == load.jobs[number].max_new_tokens for number in step.before)
            assert step.before or not step.waiting, "somebody waits and nothing runs"


def fitting(load: Load, step: Step) -> tuple[list[int], str]:
    """Those that wait, as far as rows, tokens and stretches of the cache reach, and what keeps out the next."""
    is_held = [False] * load.cache_tokens

    def hold(start: int, length: int) -> None:
        is_held[start : start + length] = [True] * length

    for number, (_, start) in step.before.items():
        hold(start, load.jobs[number].slot_tokens)
    found: list[int] = []
    for number in step.waiting:
        tokens, length = sum(load.jobs[other].new_tokens for other in [*found, number]), load.jobs[number].slot_tokens
        if len(found) == load.group_rows or (found and tokens > load.prefill_tokens):
            return found, "the limits of a prefill"
        places = range(load.cache_tokens - length + 1)
        start = next((start for start in places if not any(is_held[start : start + length])), None)
        if len(found) + len(step.before) == load.num_rows:
            return found, "no row"
        if start is None:
            return found, "no room in the cache"
        hold(start, length)
        found.append(number)
    return found, "nobody waits"


def is_worthwhile(load: Load, step: Step) -> bool:
    """Whether those that fit are a full prefill, a quarter of what can run, all that are left, or all that would run."""
    found, obstacle = fitting(load, step)
    if not found:
        return False
    is_quarter_of_rows = (
        4 * len(found) >= min(4 * load.group_rows, load.num_rows - load.num_rows % 4) if load.num_rows >= 4 else True
    )
    match obstacle:
        case _ if is_quarter_of_rows or not step.before:
            return True
        case "the limits of a prefill":
            return True
        case "no room in the cache":
            return 4 * len(found) >= len(found) + len(step.before)
        case "nobody waits":
            return step.is_source_empty
        case _:
            return False


@given(loads())
def test_a_prefill_comes_as_soon_as_it_is_worth_its_while_and_not_before(load: Load) -> None:
    for step in Run(load).steps:
        if is_worthwhile(load, step):
            assert step.kind == "prefill"
            assert list(step.numbers) == fitting(load, step)[0]
        else:
            assert step.kind != "prefill"


@given(st.integers(1, 300), st.integers(1, 40))
def test_a_full_prefill_has_most_of_the_rows_that_it_may_have_and_divides_all_if_such_a_number_does(
    num_rows: int, prefill_rows: int
) -> None:
    load = Load(jobs=(), num_rows=num_rows, cache_tokens=1, prefill_rows=prefill_rows, prefill_tokens=1, lag=0)
    most = min(num_rows, prefill_rows)
    assert most / 2 <= load.group_rows <= most
    assert num_rows % load.group_rows == 0 or all(num_rows % size for size in range(most // 2 + 1, most + 1))


@given(loads())
def test_the_same_requests_run_in_the_same_steps(load: Load) -> None:
    assert Run(load).steps == Run(load).steps


@given(loads())
def test_no_more_are_taken_in_than_one_prefill_starts(load: Load) -> None:
    run = Run(replace(load, is_lazy=True))
    assert all(len(step.waiting) <= load.group_rows for step in run.steps)


@given(loads())
def test_what_is_given_up_never_runs_again_and_leaves_no_trace(load: Load) -> None:
    run = Run(load)
    for number, before_step in run.gone.items():
        later = run.steps[before_step:]
        assert not any(number in step.numbers or number in step.waiting or number in step.after for step in later)


@given(loads())
def test_at_the_end_the_whole_cache_is_free(load: Load) -> None:
    scheduler = Run(load).scheduler
    assert scheduler.num_running == 0
    assert scheduler.next_step() is None
    whole = Generation(number=100, prompt_tokens=load.cache_tokens, new_tokens=1, max_new_tokens=1)
    scheduler.add(whole)
    assert isinstance(scheduler.next_step(), Prefill)
    assert (whole.row, whole.start) == (0, 0)


@given(loads())
def test_at_the_end_all_rows_are_free(load: Load) -> None:
    scheduler, num_rows = Run(load).scheduler, min(load.num_rows, load.cache_tokens)
    small = [Generation(number=number, prompt_tokens=1, new_tokens=1, max_new_tokens=1) for number in range(num_rows)]
    for generation in small:
        scheduler.add(generation)
    while scheduler.next_step():
        assert scheduler.num_running <= num_rows
    assert [generation.row for generation in small] == list(range(num_rows))


def test_the_loads_of_these_laws_meet_every_case() -> None:
    met = Counter[str]()

    @settings(derandomize=True, database=None, max_examples=500)
    @given(loads())
    def count(load: Load) -> None:
        run = Run(load)
        for step in run.steps:
            met[f"{step.kind} with lag {load.lag}"] += 1
            if step.kind == "prefill":
                met["a longer prompt alone"] += load.jobs[step.numbers[0]].new_tokens > load.prefill_tokens
                met["all that wait, beside others"] += bool(step.before) and len(step.numbers) == len(step.waiting)
                met["full, beside others"] += bool(step.before) and len(step.numbers) < len(step.waiting)
            else:
                met["put off"] += bool(fitting(load, step)[0])
        met["given up"] += len(run.gone)
        met["ordered in vain"] += sum(run.num_scheduled.values()) - sum(run.num_seen.values())

    count()
    assert met.pop("nothing with lag 0") > 0, "all requests can be given up"
    assert len(met) == 11
    assert min(met.values()) >= 10, met


@pytest.mark.parametrize(
    ("max_new_tokens", "lag", "expected"),
    [
        (4, 0, "P0 D0 P1 D1 P2 D2"),
        (4, 1, "P0 D0 D0 P1 D1 D1 P2 D2 D2"),
        (2, 1, "P0 D0 -- P1 D1 -- P2 D2 --"),
        (2, 0, "P0 D0 P1 D1 P2 D2"),
    ],
)
def test_a_stop_that_is_seen_late_costs_one_token_and_frees_the_row_for_the_next(
    max_new_tokens: int, lag: int, expected: str
) -> None:
    job = Job(prompt_tokens=5, new_tokens=5, max_new_tokens=max_new_tokens, answer_tokens=2)
    load = Load(
        jobs=(job,) * 3,
        num_rows=1,
        cache_tokens=job.slot_tokens,
        prefill_rows=3,
        prefill_tokens=100,
        lag=lag,
        is_lazy=False,
    )
    run = Run(load)
    names = {"prefill": "P", "decode": "D", "nothing": "-"}
    assert " ".join(f"{names[step.kind]}{step.numbers[0] if step.numbers else '-'}" for step in run.steps) == expected
    assert {place for step in run.steps for place in step.after.values()} == {(0, 0)}


def test_a_request_that_does_not_fit_waits_for_the_slot_before_it_and_is_not_overtaken() -> None:
    long, short = (Job(prompt_tokens=tokens, new_tokens=1, max_new_tokens=3, answer_tokens=3) for tokens in (18, 1))
    load = Load(jobs=(short, long, short), num_rows=3, cache_tokens=22, prefill_rows=1, prefill_tokens=9, lag=0, is_lazy=False)
    starts = [(step.numbers, set(step.before)) for step in Run(load).steps if step.kind == "prefill"]
    assert starts == [((0,), set()), ((1,), set()), ((2,), set())]


@pytest.mark.parametrize("lag", [0, 1])
def test_rows_hardly_ever_stand_empty_while_requests_wait(lag: int) -> None:
    """Answers of 16 to 512 tokens: refilled in groups, nearly as good as each row at once, in far fewer prefills."""
    choice = random.Random(3)
    mixed = []
    for _ in range(2000):
        prompt_tokens = choice.randint(1060, 1200)
        mixed.append(Job(prompt_tokens=prompt_tokens, new_tokens=1024, max_new_tokens=512, answer_tokens=choice.randint(16, 512)))
    load = Load(jobs=tuple(mixed), num_rows=256, cache_tokens=256 * 1800, prefill_rows=15, prefill_tokens=16_384, lag=lag)
    grouped, at_once = Run(load), Run(replace(load, prefill_rows=1))
    sizes = [len(step.numbers) for step in grouped.steps if step.kind == "decode" and not step.is_source_empty]
    assert len(sizes) > 1500
    assert sum(sizes) / (256 * len(sizes)) > 0.95
    num_steps, num_steps_at_once = (Counter(step.kind for step in run.steps) for run in (grouped, at_once))
    assert num_steps["decode"] < 1.05 * num_steps_at_once["decode"]
    assert num_steps["prefill"] < num_steps_at_once["prefill"] / 7


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((5, 0, 1), None),
        ((5, 6, 1), None),
        ((5, 5, 0), None),
        ((5, 5, 7), "the cache is smaller than one request"),
        ((11, 5, 1), "the cache is smaller than one request"),
    ],
)
def test_a_request_that_could_never_run_is_our_own_mistake(sizes: tuple[int, int, int], message: str | None) -> None:
    prompt_tokens, new_tokens, max_new_tokens = sizes
    scheduler = Scheduler(num_rows=1, cache_tokens=10, prefill_rows=1, prefill_tokens=1)
    generation = Generation(number=0, prompt_tokens=prompt_tokens, new_tokens=new_tokens, max_new_tokens=max_new_tokens)
    with pytest.raises(AssertionError, match=message):
        scheduler.add(generation)
    assert scheduler.next_step() is None


def test_it_loads_no_torch() -> None:
    code = "import sys, yivl_core.inference.scheduler; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
