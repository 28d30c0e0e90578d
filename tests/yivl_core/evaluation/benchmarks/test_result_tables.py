import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from yivl_core.evaluation.benchmarks.result_tables import ColumnKinds, open_tsv, open_xlsx

CELLS = [
    "",
    "NA",
    "None",
    "1",
    "007",
    "-3",
    "+4",
    "1.5",
    ".5",
    "2.",
    "1e3",
    "True",
    "false",
    "x",
    "=1",
    "#DIV/0!",
    "1,000",
    "0x1f",
]


def by_pandas(cells: list[str]) -> pd.Series:
    text = "a\tend\n" + "".join(f'"{cell}"\t"x"\n' for cell in cells)
    return pd.read_csv(io.StringIO(text), sep="\t")["a"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(st.sampled_from(CELLS), min_size=1, max_size=4))
@example(cells=["1", "2"])
@example(cells=["1", ""])
@example(cells=["True", "false"])
@example(cells=["123456789012345678", "1"])
def test_pandas_reads_from_xlsx_what_it_reads_from_the_table(tmp_path: Path, cells: list[str]) -> None:
    kinds = ColumnKinds(["a", "end"])
    for cell in cells:
        kinds.update({"a": cell, "end": "x"})
    path = tmp_path / "a.xlsx"
    with open_xlsx(path, kinds.kinds()) as writer:
        for cell in cells:
            writer.write({"a": cell, "end": "x"})
    expected = by_pandas(cells)
    read = pd.read_excel(path)["a"]
    pd.testing.assert_series_equal(read, expected, check_dtype=False)
    if expected.dtype == "int64":
        assert read.dtype == "int64"


@pytest.mark.parametrize("text", ["a\tb", 'say "x"', "two\nlines", "\r", "", "=1", " x "])
def test_a_tsv_file_holds_any_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.tsv"
    with open_tsv(path, {"a": "text", "b": "text"}) as writer:
        writer.write({"a": text, "b": "x"})
    read = pd.read_csv(path, sep="\t", keep_default_na=False)
    assert read.to_dict("list") == {"a": [text], "b": ["x"]}
