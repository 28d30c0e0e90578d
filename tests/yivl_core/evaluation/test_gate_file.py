import hashlib
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from yivl_core.errors import ConfigurationError, StorageError
from yivl_core.evaluation.configuration import EvaluationConfig
from yivl_core.evaluation.gate_file import Gate, Requirements, Rule, SliceValue, read_gate
from yivl_core.storage import publish_bytes


def config(**changes: Any) -> EvaluationConfig:
    return EvaluationConfig(**({"predictions": "p", "output": "o", "baseline": "b"} | changes))


def read(text: str | bytes, **changes: Any) -> Gate:
    url = f"memory://{uuid.uuid4().hex}/gate.yaml"
    publish_bytes(url, text.encode() if isinstance(text, str) else text)
    return read_gate(url, config(**changes))


FULL = """
rules:
  - {metric: cer, direction: low, margin: 0.005, test: non_inferiority, min_n: 500}
  - metric: coverage
    min: 0.99
  - {metric: exact_match, min: 0.5, max: 1, slice: {name: meta.kind, value: no}}
require:
  same: [data, prompt, decoding, normaliser]
  equal: {normaliser: nfc+casefold+ws1, data: "0123", decoding.max_new_tokens: 64}
  primary: not_worse
require_baseline: true
"""


def test_a_gate_is_read_with_every_key(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(FULL)
    gate = read_gate(str(path), config(slice_by=("kind",)))
    assert gate.digest == hashlib.sha256(FULL.encode()).hexdigest()
    assert gate.settings.rules == (
        Rule(metric="cer", direction="low", margin=0.005, test="non_inferiority", min_n=500),
        Rule(metric="coverage", min=0.99),
        Rule(metric="exact_match", min=0.5, max=1.0, slice=SliceValue(name="meta.kind", value="no")),
    )
    assert gate.settings.require == Requirements(
        same=("data", "prompt", "decoding", "normaliser"),
        equal={"normaliser": "nfc+casefold+ws1", "data": "0123", "decoding.max_new_tokens": "64"},
        primary="not_worse",
    )
    assert gate.settings.require_baseline


def test_the_example_of_the_readme_is_a_gate(repository: Path) -> None:
    readme = (repository / "README.md").read_text("utf-8")
    (example,) = (block for block in re.findall(r"^```yaml\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL) if "rules:" in block)
    settings = read(example).settings
    assert [rule.metric for rule in settings.rules] == ["cer", "exact_match", "cer", "exact_match", "looping", "coverage"]
    assert settings.require.primary == "not_worse"
    assert settings.require.equal["decoding.max_new_tokens"] == "512"


def test_without_a_baseline_a_gate_is_read_unless_it_requires_one() -> None:
    assert not read("rules: [{metric: cer, margin: 0.01}]", baseline=None).settings.require_baseline
    with pytest.raises(ConfigurationError, match=r"gate\.yaml: the gate requires a baseline \(require_baseline\), and none is"):
        read("rules: [{metric: cer, margin: 0.01}]\nrequire_baseline: true", baseline=None)


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("rules: [{metric: chrf, direction: high, min: 1}]", {"metrics": ("caption",)}),
        ("rules: [{metric: cider_d, direction: high, min: 1}]", {"metrics": ("caption",)}),
        ("rules: [{metric: bleu4, direction: high, min: 1}]", {"metrics": ("caption",)}),
        ("rules: [{metric: failed, direction: low, max: 0.1}]", {}),
        ("rules: [{metric: coverage, direction: high, min: 0.1}]", {}),
        ("rules: [{metric: cer_verbatim, direction: low, max: 1e-1}]", {"extractor": "unwrapped"}),
        ("rules: [{metric: anls, min: 0.1, slice: {name: length, value: '0'}}]", {"primary": "anls"}),
        ("rules: [{metric: cer, max: 0.1, slice: {name: text in training, value: no}}]", {"training_texts": ("t",)}),
        ("require: {same: [model]}", {}),
    ],
)
def test_what_fits_the_evaluation_is_taken(text: str, changes: dict[str, Any]) -> None:
    assert read(text, **changes).settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [{metric: cer, max: 1, limit: 2}]", r"gate\.yaml: rule 1: limit is not a setting; check the spelling"),
        ("rule: []", r"gate\.yaml: rule is not a setting"),
        ("require: {sane: [data]}", r"gate\.yaml: require\.sane is not a setting"),
        ("rules: [{max: 1}]", r"gate\.yaml: rule 1: metric is missing"),
        ("rules: [{metric: cer}]", r"rule 1 .*a rule needs one of `margin`, `min`, `max` and `min_n`"),
        ("rules: [{metric: cer, max: 1}, {metric: cer, max: much}]", r"rule 2: max 'much' has to be a number"),
        ("rules: [{metric: cer, max: .nan}]", r"rule 1: max '\.nan' has to be a number"),
        ("rules: [{metric: cer, max: nan}]", r"rule 1: max 'nan' has to be a finite number"),
        ("rules: [{metric: cer, max: }]", r"rule 1: max '' has to be a number"),
        ("rules: [{metric: cer, margin: -0.1}]", r"rule 1: margin '-0\.1' has to be at least 0"),
        ("rules: [{metric: cer, max: 1, min_n: 0.5}]", r"rule 1: min_n '0\.5' has to be a whole number"),
        ("rules: [{metric: cer, min: 2, max: 1}]", r"nothing is at least 2 and at most 1"),
        ("rules: [{metric: cer, margin: 1, test: t}]", r"rule 1: test 't' has to be one of 'regression' or 'non_inferiority'"),
        ("rules: [{metric: cer, max: 1, test: non_inferiority}]", r"`test` is for rules with a `margin`"),
        ("rules: [{metric: cer, margin: 0, test: non_inferiority}]", r"needs a `margin` above 0"),
        ("rules: [{metric: cer, margin: 0, slice: {name: length, value: x}}]", r"are not measured in slices; give `min` or"),
        ("rules: [{metric: coverage, margin: 0}]", r"give `metric: failed` with a `margin`"),
        ("rules: [{metric: cer, direction: up, max: 1}]", r"rule 1: direction 'up' has to be one of 'low' or 'high'"),
        ("rules: [{metric: cer, direction: high, max: 1}]", r"rule 1: of cer low figures are good, not high; leave out"),
        ("rules: [{metric: coverage, direction: low, min: 1}]", r"rule 1: of coverage high figures are good"),
        (
            "rules: [{metric: cerr, max: 1}]",
            r"rule 1: the metric 'cerr' is not measured; name one of cer, exact_match, .*coverage",
        ),
        ("rules: [{metric: bleu4, min: 1}]", r"the metric 'bleu4' is not measured; .* or ask for more `metrics`"),
        ("rules: [{metric: cer_verbatim, max: 1}]", r"the metric 'cer_verbatim' is not measured"),
        (
            "rules: [{metric: cer, max: 1, slice: {name: store, value: x}}]",
            r"no slice 'store'; the report has length, characters",
        ),
        (
            "rules: [{metric: wer, max: 1, slice: {name: length, value: x}}]",
            r"wer is not measured in slices; these are: cer, exac",
        ),
        ("rules: [{metric: cer, max: 1, slice: length}]", r"rule 1: slice 'length' has to be a group of settings"),
        ("rules: {metric: cer}", r"rules \{'metric': 'cer'\} has to be a list"),
        ("rules: [cer]", r"rule 1 'cer' has to be a group of settings"),
        ("require: {same: [weather]}", r"require\.same\.0 'weather' has to be one of 'data', 'prompt'"),
        ("require: {equal: [x]}", r"require\.equal \['x'\] has to be a mapping"),
        ("require: {equal: {normalizer: x}}", r"'normalizer' is nothing that can be pinned; give normaliser, extractor"),
        ("require: {primary: worse}", r"require\.primary 'worse' has to be one of 'better' or 'not_worse'"),
        ("rules: []", r"the gate asks for nothing; give `rules` or `require`"),
        ("{}", r"the gate asks for nothing"),
        ("require_baseline: perhaps", r"require_baseline 'perhaps' has to be true or false"),
        ("", r"gate\.yaml: a gate is a mapping with the keys rules, require and require_baseline"),
        ("- metric: cer", r"gate\.yaml: a gate is a mapping"),
        ("just text", r"gate\.yaml: a gate is a mapping"),
        ("rules: [", r"gate\.yaml:1: .*; correct the YAML"),
        ("rules:\n  - metric: cer\n   max: 1\n", r"gate\.yaml:3: .*; correct the YAML"),
        ("a: 1\n---\nb: 2\n", r"gate\.yaml:2: .*; correct the YAML"),
        ("rules:\n- metric: cer\n  max: 1\n  max: 2\n", r"gate\.yaml:4: this key stands twice: max; correct the YAML"),
        ("? [a]\n: 1\n", r"gate\.yaml:1: a key has to be text"),
        ("a: &a [x]\nb: *a\n", r"gate\.yaml:2: aliases \(\*\) are not read; write it out"),
        ("rules:\n- &r {metric: cer, max: 1}\n- {<<: *r, min: 0}\n", r"gate\.yaml:3: aliases"),
        ("[" * 5000, r"gate\.yaml: this is no YAML: it is nested too deeply"),
        ("x" * 70_000, r"gate\.yaml: the file is larger than 65536 bytes, so it is no gate; check the path"),
        (b"\xff\xfea", r"gate\.yaml: this is no YAML"),
        (b"a: \x00", r"gate\.yaml: this is no YAML"),
    ],
)
def test_what_is_no_gate_is_refused_with_file_and_key(text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read(text)


def test_a_billion_laughs_are_not_laughed() -> None:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    with pytest.raises(ConfigurationError, match="aliases"):
        read("\n".join(lines))


def test_tags_make_no_objects(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"rule 1 'touch .*' has to be a group of settings"):
        read(f"rules: !!python/object/apply:os.system ['touch {tmp_path}/owned']")
    assert not (tmp_path / "owned").exists()


def test_a_gate_that_is_not_there_is_an_error_of_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gate\.yaml: there is no such file"):
        read_gate(str(tmp_path / "gate.yaml"), config())
