import pytest

from yivl_core.errors import ConfigurationError
from yivl_core.evaluation.configuration import ScoringSettings
from yivl_core.evaluation.metrics.document_frequencies import DocumentFrequencies
from yivl_core.evaluation.metrics.names import ALWAYS, GROUPS, HYGIENE, NAMES, make_metrics, resolve_names

IN_EVERY_REPORT = (*ALWAYS, *HYGIENE)


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_can_be_asked_for(name: str) -> None:
    names = resolve_names([name])
    assert names[0] == name
    assert set(names) == {name, *IN_EVERY_REPORT}
    assert ScoringSettings(metrics=(name,)).metrics == (name,)


@pytest.mark.parametrize("group", list(GROUPS))
def test_every_group_can_be_asked_for(group: str) -> None:
    names = resolve_names([group])
    assert names[: len(GROUPS[group])] == GROUPS[group]
    assert set(names) == {*GROUPS[group], *IN_EVERY_REPORT}
    assert set(GROUPS[group]) <= set(NAMES)
    assert ScoringSettings(metrics=(group,)).metrics == (group,)


def test_no_group_is_called_as_a_metric_and_no_metric_twice() -> None:
    assert not set(GROUPS) & set(NAMES)
    assert len(set(NAMES)) == len(NAMES)
    assert len(set(resolve_names([*GROUPS, *NAMES]))) == len(NAMES) == len(resolve_names([*GROUPS, *NAMES]))


def test_what_is_asked_for_first_stands_first() -> None:
    assert resolve_names(["anls", "ocr"])[:3] == ("anls", "cer", "exact_match")
    assert resolve_names(["failed"]) == ("failed", "cer", "exact_match", "empty", "cut", "looping", "refused")


@pytest.mark.parametrize("name", ["", "CER", "accuracy", "bleu"])
def test_another_name_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"there is no metric '{name}'; give groups \(ocr, vqa, .*\) or names .*cider_d\)"
    ):
        resolve_names([name])


def test_metrics_are_made_under_their_names_with_the_settings() -> None:
    frequencies = DocumentFrequencies()
    frequencies.add([["a"], ["b"]])
    made = make_metrics(NAMES, normaliser="nfkc+nows", bleu_tokenizer="zh", document_frequencies=frequencies)
    assert tuple(metric.name for metric in made) == NAMES
    by_name = {metric.name: metric for metric in made}
    assert by_name["cer"].normaliser == by_name["anls"].normaliser == by_name["field_f1"].normaliser == "nfkc+nows"
    assert by_name["cer_as_written"].normaliser == "raw"
    assert "tok:zh" in by_name["bleu4"].definition
    assert frequencies.digest in by_name["cider_d"].definition
    assert len({metric.title for metric in made}) == len(made), "titles tell metrics apart"
