"""The columns of a predictions file: name, type, meaning, unit, and when a value is null. The README's table is made of them."""

from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the parquet files.

    Attributes:
        name: of the column, and of the attribute of `Prediction`.
        type: in parquet.
        description: what it holds, with its unit.
        null_when: the only case in which it is null; None: it never is.
        is_content: whether the content digest covers it.
        since: version of the schema that brought it.
    """

    name: str
    type: pa.DataType
    description: str
    null_when: str | None = None
    is_content: bool = True
    since: int = 1


def _list_of(element: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", element))  # the name that parquet gives it, so that a schema read equals the one written


_ROUND = pa.struct([pa.field("query", pa.string(), nullable=False), pa.field("response", pa.string(), nullable=False)])
_IMAGE = pa.struct(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
    ]
)

COLUMNS = (
    Column(
        name="sample_id",
        type=pa.string(),
        description="the record's `id`, else the sha256 of what the model is shown (images, history, query, system); "
        "`#2`, `#3` and so on where it occurs again",
    ),
    Column(
        name="cluster_id",
        type=pa.string(),
        description="what belongs together in statistics: a page, a receipt",
        null_when="the record has none",
    ),
    Column(name="record_index", type=pa.int64(), description="place in the input, from 0"),
    Column(name="source", type=pa.string(), description="where it was read: `file:line`, or the image file", is_content=False),
    Column(name="query", type=pa.string(), description="what was asked", null_when="the input line is no record"),
    Column(name="history", type=_list_of(_ROUND), description="earlier rounds, oldest first"),
    Column(
        name="system",
        type=pa.string(),
        description="system text; empty: none",
        null_when="the model's own is used, or the input line is no record",
    ),
    Column(
        name="images",
        type=_list_of(_IMAGE),
        description="address as given, sha256 (hex) of the file, width and height in pixels; "
        "of an image that could not be read or decoded only what is known",
    ),
    Column(name="reference", type=pa.string(), description="the right answer", null_when="the record has none"),
    Column(name="references", type=_list_of(pa.string()), description="further right answers"),
    Column(name="meta", type=pa.string(), description="the record's other fields, as a JSON object"),
    Column(
        name="response",
        type=pa.string(),
        description="what the model wrote, without the stop",
        null_when="`finish_reason` is `error`",
    ),
    Column(
        name="finish_reason",
        type=pa.string(),
        description="`stop`: the model ended its answer; `length`: cut at the most new tokens; `error`: no answer",
    ),
    Column(
        name="error_kind",
        type=pa.string(),
        description="what went wrong, in one word",
        null_when="`finish_reason` is not `error`",
    ),
    Column(
        name="error",
        type=pa.string(),
        description="what went wrong, where, and how to mend it",
        null_when="`finish_reason` is not `error`",
    ),
    Column(
        name="prompt_tokens",
        type=pa.int64(),
        description="tokens of the prompt, image tokens counted",
        null_when="`finish_reason` is `error`",
    ),
    Column(
        name="completion_tokens",
        type=pa.int64(),
        description="tokens of the answer, the stop counted",
        null_when="`finish_reason` is `error`",
    ),
    Column(
        name="completion_logprobs",
        type=_list_of(pa.float64()),
        description="of each of these tokens the natural logarithm of its probability by the model alone, "
        "before temperature and penalty",
        null_when="`finish_reason` is `error`, or `logprobs` was not asked for",
        is_content=False,  # its last bits depend on what was answered beside the record
        since=2,
    ),
    Column(
        name="preprocess_s",
        type=pa.float64(),
        description="seconds for reading and preparing images and prompt",
        null_when="not measured",
        is_content=False,
    ),
    Column(
        name="generate_s",
        type=pa.float64(),
        description="seconds from when the model took the record up until its answer was whole; others are answered meanwhile",
        null_when="not measured",
        is_content=False,
    ),
)


def _schema(version: int) -> pa.Schema:
    columns = [column for column in COLUMNS if column.since <= version]
    return pa.schema(
        [pa.field(column.name, column.type, nullable=column.null_when is not None) for column in columns],
        metadata={"yivl.schema": "predictions", "yivl.schema_version": str(version)},
    )


PREDICTION_SCHEMA = _schema(SCHEMA_VERSION)
# By version, all that are read; a column that a version lacks is null.
READ_SCHEMAS = {str(version): _schema(version) for version in range(1, SCHEMA_VERSION + 1)}


def columns_table() -> str:
    """The columns as a Markdown table."""
    lines = ["| column | type | what it holds | null when |", "|---|---|---|---|"]
    lines += [
        f"| `{column.name}` | {_type_name(column.type)} | {column.description} | {column.null_when or 'never'} |"
        for column in COLUMNS
    ]
    return "\n".join(lines)


def _type_name(data_type: pa.DataType) -> str:
    if pa.types.is_list(data_type):
        return f"list of {_type_name(data_type.value_type)}"
    if pa.types.is_struct(data_type):
        return (
            "("
            + ", ".join(
                f"{data_type.field(number).name} {_type_name(data_type.field(number).type)}"
                for number in range(data_type.num_fields)
            )
            + ")"
        )
    return {"double": "float64"}.get(str(data_type), str(data_type))
