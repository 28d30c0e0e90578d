"""The metrics by the names that users ask for, and the groups of them that belong to a kind of task.

| group | for | metrics |
|---|---|---|
| `ocr` | reading text | CER, exact match, WER, 1-NED, ANLS; CER and exact match as written, without spaces, capped |
| `vqa` | short answers | exact match, ANLS, relaxed accuracy, exact decimal numbers, VQA accuracy where there are ten answers |
| `fields` | key fields as JSON | field accuracy, field F1, answers without fields |
| `caption` | descriptions | BLEU-4, chrF, ROUGE-L, CIDEr-D |

CER, exact match and the counts of bad answers stand in every report.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from yivl_core.errors import ConfigurationError
from yivl_core.evaluation.metrics.cider import cider_d
from yivl_core.evaluation.metrics.document_frequencies import DocumentFrequencies
from yivl_core.evaluation.metrics.edits import EDIT_METRICS
from yivl_core.evaluation.metrics.fields import field_accuracy, field_f1, unparsable
from yivl_core.evaluation.metrics.hygiene import HYGIENE_METRICS
from yivl_core.evaluation.metrics.metric import Metric
from yivl_core.evaluation.metrics.numbers import decimal_exact, relaxed_accuracy
from yivl_core.evaluation.metrics.ocrbench import ocrbench
from yivl_core.evaluation.metrics.rouge import rouge_l
from yivl_core.evaluation.metrics.translation import bleu4, chrf
from yivl_core.evaluation.metrics.vqa import vqa_accuracy
from yivl_core.evaluation.texts.normalisation import MAIN


def _without_normaliser(make: Callable[[], Metric], _: str) -> Metric:
    return make()


CIDER = "cider_d"
ALWAYS = ("cer", "exact_match")
HYGIENE = ("failed", "empty", "cut", "looping", "refused")

GROUPS: Mapping[str, tuple[str, ...]] = {
    "ocr": (
        "cer", "exact_match", "wer", "one_minus_ned", "anls", "cer_as_written", "exact_match_as_written", "cer_without_spaces",
        "cer_capped",
    ),
    "vqa": ("exact_match", "anls", "relaxed_accuracy", "decimal_exact", "vqa_accuracy"),
    "fields": ("field_accuracy", "field_f1", "unparsable"),
    "caption": ("bleu4", "chrf", "rouge_l", CIDER),
}  # fmt: skip

_COMPARING = (*EDIT_METRICS, relaxed_accuracy, field_accuracy, field_f1)
_OTHERS = (decimal_exact, vqa_accuracy, unparsable, rouge_l, ocrbench, *HYGIENE_METRICS)
_MAKERS: Mapping[str, Callable[[str], Metric]] = {
    **{make(MAIN).name: make for make in _COMPARING},
    **{make().name: partial(_without_normaliser, make) for make in _OTHERS},
    "chrf": partial(_without_normaliser, chrf),  # not called for its name, which would load sacreBLEU
}
NAMES = (*_MAKERS, "bleu4", CIDER)


def resolve_names(asked: Iterable[str]) -> tuple[str, ...]:
    """The metrics of a report, from names of metrics and groups: those that were asked for, then what is always there.

    Raises:
        ConfigurationError: there is no metric or group of a name.
    """
    found: list[str] = []
    for name in asked:
        if name not in GROUPS and name not in NAMES:
            raise ConfigurationError(
                f"there is no metric {name!r}; give groups ({', '.join(GROUPS)}) or names of metrics ({', '.join(NAMES)})"
            )
        found += GROUPS.get(name, (name,))
    return tuple(dict.fromkeys((*found, *ALWAYS, *HYGIENE)))


def make_metrics(
    names: Iterable[str], *, normaliser: str, bleu_tokenizer: str, document_frequencies: DocumentFrequencies | None
) -> tuple[Metric, ...]:
    """The metrics of these names.

    Args:
        names: as `resolve_names` gives them.
        normaliser: the main one.
        bleu_tokenizer: sacreBLEU's name of it.
        document_frequencies: for CIDEr-D, which cannot be made without.
    """
    made = []
    for name in names:
        if name == "bleu4":
            made.append(bleu4(bleu_tokenizer))
        elif name == CIDER:
            assert document_frequencies is not None
            made.append(cider_d(document_frequencies))
        else:
            made.append(_MAKERS[name](normaliser))
    return tuple(made)
