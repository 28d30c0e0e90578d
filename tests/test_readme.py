import ast
import re
import shlex
from pathlib import Path

import pytest

from flows.cli import _parser
from yivl_core.outputs.predictions import Prediction, PredictionImage, write_part
from yivl_core.outputs.schema import columns_table


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def commands(readme: str) -> list[str]:
    blocks = re.split(r"^```.*$", readme, flags=re.MULTILINE)[1::2]
    return [line for block in blocks for line in block.splitlines() if line.startswith("yivl ")]


def test_every_command_parses(readme: str) -> None:
    assert len(commands(readme)) >= 9
    for command in commands(readme):
        _parser().parse_args(shlex.split(command)[1:])


def test_the_columns_are_those_of_the_schema(readme: str) -> None:
    assert columns_table().strip() in readme


def test_the_tree_names_every_module_with_what_its_docstring_says(readme: str, repository: Path) -> None:
    paths = [path for top in ("flows", "tasks", "yivl_core") for path in (repository / top).rglob("*.py")]
    modules = [path for path in paths if path.name != "__init__.py"]
    assert len(modules) > 60
    for path in modules:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring is not None, path
        first = docstring.split("\n\n")[0].replace("\n", " ")
        assert re.search(rf"^ +{re.escape(path.name)} +{re.escape(first)}$", readme, re.MULTILINE), path


def test_the_result_is_read_as_shown(
    readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = (block for block in re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL) if "duckdb" in block)
    texts = ["TOTAL 12.50", "CASH", None]
    rows = [
        Prediction(
            sample_id=f"s{number}",
            cluster_id=None,
            record_index=number,
            source="x",
            query="Read it.",
            history=(),
            system=None,
            images=(PredictionImage(uri=f"scan-{number}.png"),),
            reference=None,
            references=(),
            meta="{}",
            response=text,
            finish_reason="stop" if text else "error",
            error_kind=None if text else "truncated",
            error=None if text else "it is cut off",
            prompt_tokens=1 if text else None,
            completion_tokens=1 if text else None,
        )
        for number, text in enumerate(texts)
    ]
    for number in range(2):
        write_part(str(tmp_path / "predictions/scans"), f"part-0000{number}.parquet", rows[2 * number : 2 * number + 2])
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    frame, total, errors = re.split(r"(?=\u250c)", capsys.readouterr().out)
    assert all(name in frame for name in ("s0", "s1", "s2", "TOTAL 12.50", "error"))
    assert "scan-0.png" in total
    assert "scan-1.png" not in total
    assert "truncated" in errors


def test_links_lead_somewhere(readme: str, repository: Path) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", readme)
    assert targets
    assert all((repository / target).exists() for target in targets)
