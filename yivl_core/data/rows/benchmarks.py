r"""Rows of benchmarks, as VLMEvalKit and lmms-eval write them -> the values of which `parse_record` makes a record.

| theirs | ours |
|---|---|
| `question` | `query`, with hint and options around it where there are options |
| `answers`, else `answer` | `response`, and `references` where several are right |
| `image`, else `images`, else `image_path` | `images`; base64 becomes a `data:` URI |
| `index`, `question_id` or `doc_id` | `id` |
| all else: `category`, `A` to `Z`, `split` ... | `meta` |

The prompt for options is that of `ImageMCQDataset.build_prompt` (open-compass/VLMEvalKit, vlmeval/dataset/image_mcq.py);
a question without options is asked as it is written, as by `ImageBaseDataset.build_prompt`. What stands in a cell is taken as
text: pandas, with which VLMEvalKit reads it, leaves out an option that reads `None`, and makes `1.0` of a 1 in a column with
gaps.
"""

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from yivl_core.data.findings import Finding, error, wrong_type
from yivl_core.data.rows.list_literals import read_list
from yivl_core.data.rows.messages import read_address

# VLMEvalKit (vlmeval/dataset/image_base.py): a cell no longer than this is no image, but the index of a row with the same image.
MAX_INDEX_CHARS = 64

_ID_FIELDS = ("index", "question_id", "doc_id", "id")
_IMAGE_FIELDS = ("image", "images", "image_path")
_LMMS_EVAL_FIELDS = ("answer", "answers", "image", "images", "question_id", "doc_id")
_MEDIA_TYPES = {"/9j/": "jpeg", "iVBORw": "png", "R0lGOD": "gif", "UklGR": "webp", "Qk": "bmp", "SUkq": "tiff", "TU0A": "tiff"}
_LETTERED = re.compile(r"\(?([A-Z])[.):]\s*(.*)", re.DOTALL)
_NUMBERED_TAG = re.compile(r"<image ([0-9]+)>")


def is_vlmevalkit(names: Any) -> bool:
    """Whether fields so named are those of a row of VLMEvalKit's tables."""
    return "question" in names and "index" in names


def is_lmms_eval(names: Any) -> bool:
    """Whether they are those of a record for lmms-eval, or of a sample in its log."""
    return _is_sample(names) or ("question" in names and any(name in names for name in _LMMS_EVAL_FIELDS))


def read_benchmark_row(values: Mapping[str, Any], findings: list[Finding]) -> dict[str, Any]:
    """The fields of a record that a row makes.

    Args:
        values: JSON values by field name; of a table, texts.
        findings: what is wrong is added here; with an error, what is returned is not to be used.
    """
    prompt, sample_id = None, None
    row = dict(values)
    if _is_sample(values):
        row, prompt = _of_sample(values, findings)
        sample_id = values["doc_id"]
    fields: dict[str, Any] = {"id": _take_id(row) if sample_id is None else sample_id}
    if "index" in values:  # rows that share an image have that of its row
        fields["cluster_id"] = row.pop("cluster_id", fields["id"])
    images = _take_images(row, findings)
    if not images and _is_sample(values):
        message = "a sample names no image: lmms-eval leaves images out of its log"
        findings.append(error("image_missing", message, "add `image` to its `doc`, or name it (columns images=doc.FIELD)"))
    options = _options(row, findings)
    fields["query"] = row.pop("question", None) if prompt is None else prompt
    if options and prompt is None and isinstance(fields["query"], str):
        fields["query"] = choice_prompt(fields["query"], options, row.get("hint"))
    fields |= _right_answers(row, options, findings)
    if isinstance(fields["query"], str) and images:
        fields["query"], images = _at_their_places(fields["query"], images)
    if images:
        fields["images"] = images
    return {**fields, "meta": _meta(row)}


def choice_prompt(question: str, options: Mapping[str, str], hint: Any = None) -> str:
    r"""A question with options, as VLMEvalKit's `ImageMCQDataset.build_prompt` asks it by default.

    ```
    Hint: HINT\n                  where there is one
    Question: QUESTION\n
    Options:\nA. FIRST\nB. SECOND\n
    Please select the correct answer from the options above. \n
    ```
    """
    lines = [] if hint in (None, "") else [f"Hint: {hint}\n"]
    lines += [f"Question: {question}\n", "Options:\n", *(f"{letter}. {text}\n" for letter, text in options.items())]
    return "".join([*lines, "Please select the correct answer from the options above. \n"])


def _is_sample(names: Any) -> bool:
    return "doc" in names and "doc_id" in names


def _of_sample(values: Mapping[str, Any], findings: list[Finding]) -> tuple[dict[str, Any], str | None]:
    """The row that a logged sample is about, and what was asked (lmms_eval/evaluator.py: `arguments`; later: `input`)."""
    doc = values["doc"]
    if not isinstance(doc, dict):
        findings.append(wrong_type("doc", doc, "an object with the fields of the task's record"))
        return {}, None
    rest = {name: value for name, value in values.items() if name not in ("doc", "doc_id", "target", "arguments", "input")}
    row = {**rest, **doc}
    if values.get("target") is not None and not any(doc.get(name) is not None for name in ("answer", "answers")):
        row["answer"] = values["target"]
    arguments = values.get("arguments")
    asked = values.get("input", arguments[0] if isinstance(arguments, list) and arguments else None)
    if isinstance(asked, str) and asked.strip():
        return row, asked
    if not isinstance(doc.get("question"), str):
        findings.append(error("missing_field", "there is no `doc.question`", "add it, or `input` with what was asked"))
    return row, None


def _take_id(row: dict[str, Any]) -> Any:
    name = next((name for name in _ID_FIELDS if row.get(name) is not None), None)
    return None if name is None else row.pop(name)


def _take_images(row: dict[str, Any], findings: list[Finding]) -> list[str]:
    """The addresses of the first field that holds images, taken out of the row."""
    name = next((name for name in _IMAGE_FIELDS if row.get(name) not in (None, "", [])), None)
    if name is None:
        return []
    value = row.pop(name)
    if isinstance(value, str):
        value = read_list(value) or value
    if not isinstance(value, list):
        return [_address(value, name, findings)]
    return [_address(item, f"{name}[{index}]", findings) for index, item in enumerate(value)]


def _address(value: Any, name: str, findings: list[Finding]) -> str:
    if isinstance(value, dict) and isinstance(value.get("bytes"), str) and value["bytes"]:
        return _data_uri(value["bytes"])  # as the datasets library writes an image to JSON
    address = read_address(value, name, findings) or ""
    # The names of files hold a dot, other addresses a colon; base64 neither.
    is_base64 = len(address) > MAX_INDEX_CHARS and "." not in address and ":" not in address
    return _data_uri(address) if is_base64 else address


def _data_uri(base64: str) -> str:
    """An image in base64 as an address; what it is, is told by its first bytes."""
    media_type = next((name for start, name in _MEDIA_TYPES.items() if base64.startswith(start)), "unknown")
    return f"data:image/{media_type};base64,{base64}"


def _options(row: dict[str, Any], findings: list[Finding]) -> dict[str, str]:
    """The options by letter: columns so named, or the list or object in `options` or `choices`. They stay in the row."""
    name = next((name for name in ("options", "choices") if row.get(name)), None)
    given = row[name] if name else {letter: row[letter] for letter in ascii_uppercase if row.get(letter) not in (None, "")}
    if isinstance(given, str):
        given = read_list(given) or given
    if isinstance(given, list) and len(given) <= len(ascii_uppercase):
        given = dict(zip(ascii_uppercase, given, strict=False))
    if not isinstance(given, dict) or not all(isinstance(text, str | int | float) for text in given.values()):
        findings.append(wrong_type(name or "A", given, "up to 26 options, as a list of strings"))
        return {}
    return _without_letters({str(letter): str(text) for letter, text in given.items()})


def _without_letters(options: dict[str, str]) -> dict[str, str]:
    """Options without the letters that some write in front of the text, if all have their own."""
    matches = [(letter, _LETTERED.fullmatch(text)) for letter, text in options.items()]
    if all(match is not None and match[1] == letter for letter, match in matches):
        return {letter: match[2] for letter, match in matches if match is not None}
    return options


def _right_answers(row: dict[str, Any], options: Mapping[str, str], findings: list[Finding]) -> dict[str, Any]:
    name = next((name for name in ("answers", "answer") if row.get(name) not in (None, "", [])), None)
    if name is None:
        return {}
    value = row.pop(name)
    if isinstance(value, str):
        value = read_list(value) or value
    texts = []
    for item in value if isinstance(value, list) else [value]:
        text = item.get("answer") if isinstance(item, dict) else item
        if type(text) is int:
            text = list(options)[text] if 0 <= text < len(options) else str(text)
        elif type(text) is float:
            text = str(text)
        if not isinstance(text, str):
            findings.append(wrong_type(name, item, "a string, or a list of strings"))
        elif text.strip():
            texts.append(text)
    return {"response": texts[0], "references": texts[1:]} if texts else {}


def _at_their_places(query: str, images: list[str]) -> tuple[str, list[str]]:
    """Images that the question names by number, as MMMU's `<image 2>` (`split_MMMU` of VLMEvalKit), with a tag at each place."""
    numbers = [int(number) for number in _NUMBERED_TAG.findall(query)]
    if not numbers or min(numbers) < 1 or max(numbers) > len(images):
        return query, images
    return _NUMBERED_TAG.sub("<image>", query), [images[number - 1] for number in numbers]


def _meta(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of a row, with what it has in a `meta` of its own."""
    own = row.get("meta")
    if not isinstance(own, dict):
        return dict(row)
    return {**own, **{name: value for name, value in row.items() if name != "meta"}}
