"""What makes figures of two runs incomparable, what only warns, and what is not known."""

import copy
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.evaluation.comparability import (
    Difference,
    RowDifferences,
    RowIdentities,
    compare_manifests,
    differing_parts,
    row_identity,
)
from yivl_core.outputs.predictions import Prediction, PredictionImage

Make = Callable[..., Prediction]

MANIFEST: dict[str, Any] = {
    "command": "infer",
    "data": {"digest": "d", "limit": None, "prompt": None, "images": {"num": 2, "num_unknown": 0, "digest": "i"}},
    "prompt": {"version": "yi-vl-1", "system": "Be kind.", "system_sha256": "s", "stop": "###"},
    "decoding": {"max_new_tokens": 64, "temperature": 0.0, "top_k": None, "stop": []},
    "numerics": {"dtype": "bfloat16", "device": "cuda", "attention": "auto", "batch_invariant": False},
    "settings": {"batch_size": None, "shard_size": 1000, "attention": "auto", "batch_invariant": False},
    "environment": {"python": "3.12.3", "packages": {"torch": "2.11", "triton": None}, "gpu": "NVIDIA H200", "driver": "580"},
    "code": {"version": "0.1.0", "digest": "c", "git_commit": "g", "is_changed": False},
    "model": {"digest": "m", "files": {"config.json": "1", "model.safetensors": "2"}},
    "adapter": None,
    "paths": {"model": "/models/a"},
    "content_digest": "p",
    "result": {"stop": 2},
    "digest": "all",
    "times": {"ended": 1.0},
}


def changed(**values: Any) -> dict[str, Any]:
    """The manifest with other values, by their place: two underscores go one block down; `...` takes the value away."""
    manifest = copy.deepcopy(MANIFEST)
    for place, value in values.items():
        *blocks, name = place.split("__")
        block = manifest
        for key in blocks:
            block = block[key]
        if value is ...:
            del block[name]
        else:
            block[name] = value
    return manifest


def only(differences: list[Difference]) -> Difference:
    (difference,) = differences
    return difference


# Manifests


def test_equal_runs_do_not_differ_and_places_times_and_answers_do_not_count() -> None:
    other = changed(paths={"model": "/b"}, times={}, digest="x", content_digest="q", result={"length": 2})
    assert compare_manifests(MANIFEST, other) == compare_manifests(other, MANIFEST) == []


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("decoding__max_new_tokens", 128, "decoding.max_new_tokens: 64 here, 128 in the baseline"),
        ("decoding__temperature", 0.2, "decoding.temperature: 0.0 here, 0.2 in the baseline"),
        ("decoding__top_k", 5, "decoding.top_k: null here, 5 in the baseline"),
        ("decoding__stop", ["\n"], r'decoding.stop: [] here, ["\n"] in the baseline'),
        ("prompt__version", "yi-vl-2", 'prompt.version: "yi-vl-1" here, "yi-vl-2" in the baseline'),
        ("prompt__system", "Be rude.", 'prompt.system: "Be kind." here, "Be rude." in the baseline'),
    ],
)
def test_another_prompt_or_decoding_blocks_and_is_named(place: str, value: Any, told: str) -> None:
    difference = only(compare_manifests(MANIFEST, changed(**{place: value})))
    assert str(difference) == told
    assert (difference.kind, difference.is_blocking, difference.is_warning) == (place.split("__")[0], True, False)


@pytest.mark.parametrize(
    ("place", "value", "kind", "name"),
    [
        ("numerics__dtype", "float32", "numerics", "numerics.dtype"),
        ("settings__batch_size", 8, "numerics", "settings.batch_size"),
        ("environment__packages__torch", "2.13", "environment", "environment.packages.torch"),
        ("environment__packages__triton", "3.6", "environment", "environment.packages.triton"),
        ("environment__driver", "570", "environment", "environment.driver"),
        ("environment__gpu", None, "environment", "environment.gpu"),
        ("code__digest", "d", "code", "code.digest"),
        ("code__is_changed", True, "code", "code.is_changed"),
        ("data__digest", "e", "data", "data.digest"),
        ("data__images__digest", "j", "data", "data.images.digest"),
    ],
)
def test_what_may_move_figures_a_little_or_stands_in_the_rows_warns(place: str, value: Any, kind: str, name: str) -> None:
    difference = only(compare_manifests(MANIFEST, changed(**{place: value})))
    assert (difference.kind, difference.name) == (kind, name)
    assert (difference.is_blocking, difference.is_warning) == (False, True)


def test_a_value_that_settings_repeat_is_told_once() -> None:
    other = changed(numerics__attention="sdpa", settings__attention="sdpa")
    assert only(compare_manifests(MANIFEST, other)).name == "numerics.attention"


def test_model_and_adapter_are_what_is_compared() -> None:
    other = changed(model__digest="n", model__files={"config.json": "1", "pytorch_model.bin": "3"}, adapter={"digest": "a"})
    differences = compare_manifests(MANIFEST, other)
    assert [str(difference) for difference in differences] == [
        'model.digest: "m" here, "n" in the baseline',
        'model.files.model.safetensors: "2" here, no such file in the baseline',
        'model.files.pytorch_model.bin: no such file here, "3" in the baseline',
        'adapter: null here, {"digest":"a"} in the baseline',
    ]
    assert not any(difference.is_blocking or difference.is_warning for difference in differences)


def test_what_an_earlier_version_did_not_tell_is_not_known() -> None:
    earlier = changed(prompt__system=..., decoding__top_k=..., model__files=..., environment__driver=..., data__images=...)
    told = {str(difference): difference for difference in compare_manifests(earlier, MANIFEST)}
    assert list(told) == [
        'data.images: not known here, {"digest":"i","num":2,"num_unknown":0} in the baseline',
        'prompt.system: not known here, "Be kind." in the baseline',
        "decoding.top_k: not known here, null in the baseline",
        'environment.driver: not known here, "580" in the baseline',
        'model.files: not known here, {"config.json":"1","model.safetensors":"2"} in the baseline',
    ]
    assert not any(difference.is_blocking for difference in told.values())
    assert [difference.is_warning for difference in told.values()] == [True] * 4 + [False]


def test_a_value_that_reads_like_an_unknown_one_is_told_apart() -> None:
    difference = only(compare_manifests(changed(prompt__stop="not known"), changed(prompt__stop=...)))
    assert (difference.ours, difference.theirs) == ('"not known"', "not known")


def test_decoding_that_neither_tells_is_not_known() -> None:
    neither = changed(decoding=..., code=...)
    difference = only(compare_manifests(neither, neither))
    assert str(difference) == "decoding: not known here, not known in the baseline"
    assert difference.is_warning


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        (None, MANIFEST, "manifest: none here, one in the baseline, so nothing can be said of prompt and decoding"),
        (MANIFEST, None, "manifest: one here, none in the baseline, so nothing can be said of prompt and decoding"),
        (None, None, "manifest: none here, none in the baseline, so nothing can be said of prompt and decoding"),
    ],
)
def test_without_a_manifest_one_warning_says_so(ours: Any, theirs: Any, told: str) -> None:
    difference = only(compare_manifests(ours, theirs))
    assert str(difference) == told
    assert (difference.kind, difference.is_blocking, difference.is_warning) == ("manifest", False, True)


def test_long_values_are_cut() -> None:
    difference = only(compare_manifests(MANIFEST, changed(prompt__system="x" * 5000)))
    assert difference.theirs == '"' + "x" * 118 + "…"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda values: st.lists(values, max_size=2) | st.dictionaries(st.sampled_from(["digest", "files", "seed"]), values),
    max_leaves=6,
)
manifests = st.dictionaries(st.sampled_from([*MANIFEST, "else"]), json_values)


@given(manifests, manifests)
def test_manifests_of_any_shape_are_compared_alike_from_both_sides(one: dict[str, Any], other: dict[str, Any]) -> None:
    differences, mirrored = compare_manifests(one, other), compare_manifests(other, one)
    assert [(each.name, each.ours, each.theirs, each.is_blocking) for each in differences] == [
        (each.name, each.theirs, each.ours, each.is_blocking) for each in mirrored
    ]
    assert all(each.ours == each.theirs == "not known" for each in compare_manifests(one, one))


# Rows


def image(content: str | None, uri: str = "a.png") -> PredictionImage:
    return PredictionImage(uri=uri, sha256=None if content is None else hashlib.sha256(content.encode()).hexdigest())


@pytest.fixture
def row(make_prediction: Make) -> Make:
    def make(number: int = 0, **changes: Any) -> Prediction:
        usual = {"images": (image("1"), image("2")), "history": (("Hello.", "Hi."),), "references": ("12,30",)}
        values = {"response": "answer", "reference": "12.30"} | usual | changes
        return make_prediction(number, **values)

    return make


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"query": "What is written there?"}, "query"),
        ({"query": None}, "query"),
        ({"history": ()}, "history"),
        ({"history": (("Hello.", "Hi!"),)}, "history"),
        ({"system": ""}, "system"),
        ({"images": (image("1"), image("3"))}, "images"),
        ({"images": (image("2"), image("1"))}, "images"),
        ({"images": (image("1"),)}, "images"),
        ({"images": ()}, "images"),
        ({"references": ()}, "references"),
        ({"reference": "12.31"}, "references"),
        ({"reference": None}, "references"),
    ],
)
def test_another_question_or_right_answer_is_another_identity_in_that_part(row: Make, changes: dict[str, Any], part: str) -> None:
    assert differing_parts(row_identity(row()), row_identity(row(**changes))) == (part,)


def test_what_is_not_asked_does_not_count(row: Make) -> None:
    elsewhere = {"images": (image("1", "s3://b/1.png"), image("2", "/x/2.png")), "source": "other.jsonl:7", "meta": '{"page":2}'}
    failed = {"response": None, "finish_reason": "error", "error_kind": "too_long", "error": "..."}
    assert row_identity(row()) == row_identity(row(9, **elsewhere, cluster_id="page")) == row_identity(row(**failed))


def test_an_identity_stays_what_it_is_wherever_it_is_worked_out(row: Make) -> None:
    """By `b2sum -l 64` of the shell over each part's JSON."""
    assert len(row_identity(row())) == 40
    assert row_identity(row())[:8].hex() == "5655a333a72b6e1b"
    assert row_identity(row())[16:24].hex() == "7376b2cbfa0ad26e"


def compare_rows(predictions: Iterable[Prediction], baseline: Iterable[Prediction]) -> RowDifferences:
    identities = RowIdentities()
    for prediction in baseline:
        identities.add_baseline(prediction)
    for prediction in predictions:
        identities.add(prediction)
    return identities.finish()


def test_rows_are_matched_by_name_in_any_order_and_each_part_is_counted(row: Make) -> None:
    baseline = [row(number) for number in range(10)]
    ours = [row(number) for number in range(3, 10)] + [row(20), row(21)]
    ours[0] = row(3, query="Else?", images=(image("9"), image("2")))
    ours[1] = row(4, images=(image("1"), image("9")))
    found = compare_rows(reversed(ours), baseline)
    assert (found.num_both, found.only_here.num, found.only_there.num) == (7, 2, 3)
    assert found.only_here.names == ["id-21", "id-20"]
    assert found.only_there.names == ["id-0", "id-1", "id-2"]
    assert {part: (rows.num, rows.names) for part, rows in found.differing.items() if rows.num} == {
        "query": (1, ["id-3"]),
        "images": (2, ["id-4", "id-3"]),
    }
    assert str(found.differing["images"]) == "2 (id-4, id-3)"


def test_equal_rows_block_nothing_and_the_first_five_are_named(row: Make) -> None:
    rows = [row(number) for number in range(9)]
    same = compare_rows(iter(rows), iter(rows))
    assert same == RowDifferences(num_both=9)
    other = compare_rows([row(number, system="x") for number in range(9)], rows)
    assert str(other.differing["system"]) == "9 (id-0, id-1, id-2, id-3, id-4, ...)"


@pytest.mark.parametrize("is_ours", [True, False])
def test_an_image_that_one_side_could_not_read_is_not_known_to_be_another(is_ours: bool, row: Make) -> None:
    sides = [row(images=(image(None), image("2")))], [row()]
    found = compare_rows(*(sides if is_ours else reversed(sides)))
    assert not any(rows.num for rows in found.differing.values())
    assert found.unknown_images.names == ["id-0"]
