import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from flows.commands import COMMANDS, _change
from yivl_core.data.cache.image_cache import ImageCache
from yivl_core.errors import BusyError, CheckpointError, ChildFailedError, DatasetError, Interrupted
from yivl_core.evaluation.configuration import EvaluationSummary
from yivl_core.outputs.predictions import Prediction, read_predictions, write_part
from yivl_core.promotion.configuration import PromotionSummary

YIVL = [sys.executable, "-m", "flows.cli"]
FLOWS = pytest.mark.flows


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*YIVL, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=300)


def refuse(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_run_flow", fail)


def test_help_and_usage_errors_load_neither_prefect_nor_torch():
    code = """
import sys
from flows.cli import main
for arguments in (["--help"], ["sft", "--help"], ["infer", "--model", "m"], ["retrain", "--nonsense"]):
    try:
        main(arguments)
    except SystemExit:
        pass
sys.exit(str([name for name in ("prefect", "torch", "transformers", "pyarrow") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example_that_it_accepts(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*name.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  {COMMANDS[name].example}" in text
    assert text.startswith(f"usage: yivl {name}")
    import shlex

    given = cli._parser().parse_args(shlex.split(COMMANDS[name].example)[1:])
    cli.read_options(given, COMMANDS[name].config, COMMANDS[name].spelling)


@pytest.mark.parametrize("name", ["chat", "models"])
def test_commands_that_do_not_exist_yet_are_not_there(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name])
    assert stop.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sft --model m --dataset d --output o --lora-rank 0", "yivl sft: --lora-rank '0' has to be at least 1"),
        ("infer --model m --output o", "give exactly one of"),
        ("promote --registry r --model m", "yivl promote: a promotion needs --model and --report; or give --rollback"),
        ("promote --registry r --model m --rollback", "yivl promote: --rollback takes the model from the registry; leave out"),
        ("promote --registry r --rollback --approval", "yivl promote: --rollback is done at once, without --approval"),
        ("retrain --model m --dataset d --output o --promote", "--promote needs a --gate: without one nothing says"),
        ("retrain --model m --dataset d --output o --registry r", "--registry is read and changed by --promote alone"),
        ("retrain --model m --dataset d --output o --training.val-fraction 0", "--training.val-fraction above 0"),
    ],
)
def test_a_setting_that_cannot_be_is_one_message_and_exit_code_2(arguments, message, capsys):
    assert cli.main(arguments.split()) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert "Traceback" not in output.err
    assert output.out == ""


def test_export_has_to_be_told_to_merge(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", "--adapter", "a", "--output", "o"])
    assert stop.value.code == 2
    assert "--merge-lora" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DatasetError("x"), 1),
        (CheckpointError("x"), 2),
        (ChildFailedError("x"), 70),
        (Interrupted("x"), 130),
        (KeyboardInterrupt(), 130),
        (BusyError("x"), 75),
        (PermissionError(13, "Permission denied", "/there"), 74),
        (OSError(28, "No space left on device", "/there"), 74),
    ],
)
def test_an_error_is_one_message_and_its_exit_code(error, code, monkeypatch, capsys):
    refuse(monkeypatch, error)
    assert cli.main(["evaluate", "--predictions", "p", "--output", "o"]) == code
    output = capsys.readouterr()
    assert output.err.startswith("yivl evaluate: ")
    assert len(output.err.splitlines()) == 1
    assert output.out == ""


def test_a_full_disk_is_told_with_place_and_remedy(monkeypatch, capsys):
    refuse(monkeypatch, OSError(28, "No space left on device", "/there/report.md"))
    cli.main(["evaluate", "--predictions", "p", "--output", "o"])
    assert "/there/report.md: the disk is full; free some space" in capsys.readouterr().err


def test_a_bug_shows_its_traceback(monkeypatch, capsys):
    refuse(monkeypatch, AssertionError("never"))
    assert cli.main(["evaluate", "--predictions", "p", "--output", "o"]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "how"),
    [("sft --model m --dataset d --output o", "with --resume"), ("evaluate --predictions p --output o", "again")],
)
def test_ctrl_c_tells_what_is_kept_and_how_to_go_on(arguments, how, monkeypatch, capsys):
    refuse(monkeypatch, KeyboardInterrupt())
    assert cli.main(arguments.split()) == 130
    assert f"what had been published in o is kept, run the same command {how} to go on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"gate": "passed", "verdict": "worse"}, 0),
        ({"gate": "regression", "gate_reasons": ("cer 0.2 is above the most that is allowed, 0.1",)}, 1),
        ({"gate": "not comparable", "verdict": "not comparable"}, 3),
        ({"gate": "incomplete", "verdict": "better"}, 4),
        ({}, 0),
        ({"verdict": "worse"}, 0),
        ({"verdict": "not distinguishable"}, 0),
        ({"verdict": "not comparable", "reason": "these differ: prompt.system"}, 3),
    ],
)
def test_the_gate_decides_the_exit_code_of_an_evaluation(said, code, monkeypatch, capsys):
    summary = EvaluationSummary(
        output="o", num_samples=9, num_failed=0, num_empty=0, num_cut=0, cer=0.2, exact_match=0.5, primary="cer", value=0.2,
        low=0.1, high=0.3, **said,
    )  # fmt: skip
    monkeypatch.setattr(cli, "_run_flow", lambda *_: summary)
    assert cli.main(["evaluate", "--predictions", "p", "--output", "o"]) == code
    output = capsys.readouterr().out
    assert all(reason in output for reason in said.get("gate_reasons", ()))
    assert "reason" not in said or "not comparable beside the baseline: these differ: prompt.system" in output


@pytest.mark.parametrize(
    ("said", "code", "told"),
    [
        ({"result": "passed", "model": "new", "previous": "old"}, 0, "promotion it takes the place of old\ncurrent model new"),
        ({"result": "passed", "model": "new"}, 0, "promotion it takes the place of none\ncurrent model new"),
        ({"result": "passed", "model": "new", "was_current": True}, 0, "promotion it is the current model already"),
        (
            {"result": "regression", "reasons": ("cer is worse",), "model": "old"},
            1,
            "not promoted: regression\n       cer is worse",
        ),
        ({"result": "not comparable", "reasons": ("x",)}, 3, "current model none"),
        ({"result": "incomplete", "reasons": ("x",)}, 4, "not promoted: incomplete"),
    ],
)
def test_a_promotion_is_told_and_its_result_is_the_exit_code(said, code, told, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_run_flow", lambda *_: PromotionSummary(registry="r/registry.json", **said))
    assert cli.main(["promote", "--registry", "r", "--rollback"]) == code
    assert told in capsys.readouterr().out


def figures(num_exact: int, cer: float, **changes: Any) -> EvaluationSummary:
    values = {"output": "o", "num_samples": 200, "num_failed": 0, "num_empty": 0, "num_cut": 0, "primary": "cer"}
    values |= {"cer": cer, "value": cer, "low": None, "high": None, "exact_match": num_exact / 200}
    return EvaluationSummary(**(values | changes))


def test_what_a_training_has_changed_is_told_with_the_verdict():
    before, after = figures(94, 0.16), figures(185, 0.0165, verdict="better")
    assert _change(before, after) == "91 more of 200 records exact (94 -> 185), CER 0.1600 -> 0.0165; better"
    assert _change(after, before) == "91 fewer of 200 records exact (185 -> 94), CER 0.0165 -> 0.1600"
    assert _change(before, before) == "no more of 200 records exact (94 -> 94), CER 0.1600 -> 0.1600"
    anls = {"primary": "anls", "value": 0.5}
    assert _change(figures(94, 0.1, **anls), figures(94, 0.1, **anls)).endswith("(94 -> 94), anls 0.5000 -> 0.5000")


def test_logprobs_can_be_asked_for_wherever_decoding_is_decided():
    for arguments, place in (
        ("infer --model m --dataset d --output o --logprobs", "logprobs"),
        ("retrain --model m --dataset d --output o --decoding.logprobs", "decoding.logprobs"),
    ):
        given = cli._parser().parse_args(arguments.split())
        command = COMMANDS[given.command]
        assert attrgetter(place)(cli.read_options(given, command.config, command.spelling)) is True


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    """With one image of a URL."""
    cache = ImageCache(tmp_path / "cache")
    claim = cache.claim("https://ann:hunter2@images.test/a?sig=hunter2")
    assert claim is not None
    with claim:
        claim.file.write(b"x" * 1500)
        claim.keep()
    return cache


def test_a_cache_is_shown_for_people_and_for_programs(cache, capsys):
    folder = str(cache.files.path)
    assert cli.main(["cache", "show", "--cache", folder]) == 0
    assert (
        capsys.readouterr().out == f"1 images of 1.5 kB, from 1 URLs\n     1.5 kB        1 https://images.test\ncache {folder}\n"
    )
    assert cli.main(["cache", "show", "--cache", folder, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["hosts"] == [{"host": "https://images.test", "num_urls": 1, "num_bytes": 1500}]


def test_damage_in_a_cache_is_exit_code_1_once(cache, capsys):
    arguments = ["cache", "verify", "--cache", str(cache.files.path)]
    assert cli.main(arguments) == 0
    assert "1 images of 1.5 kB are whole, none is damaged" in capsys.readouterr().out
    next(cache.files.path.glob("blobs/*/*")).write_bytes(b"y")
    assert cli.main(arguments) == 1
    assert "1 damaged, which are removed and will be fetched again\n1 URLs without content" in capsys.readouterr().out
    assert cli.main(arguments) == 0


def test_a_cache_is_pruned(cache, monkeypatch, capsys):
    monkeypatch.setenv("YIVL_CACHE", str(cache.files.path))
    assert cli.main(["cache", "prune", "--max-bytes", "0"]) == 0
    assert "0 images of 0 bytes removed, 1 of 1.5 kB kept, 1 of them only since they were used" in capsys.readouterr().out
    os.utime(next(cache.files.path.glob("blobs/*/*")), (0, 0))
    assert cli.main(["cache", "prune", "--unused-days", "1"]) == 0
    assert "1 images of 1.5 kB removed, 0 of 0 bytes kept\n1 URLs without content" in capsys.readouterr().out


def test_the_cache_is_looked_after_without_prefect(cache):
    code = """
import sys
from flows.cli import main
for action in ("show", "verify", "prune"):
    assert main(["cache", action]) == 0
sys.exit(str([name for name in ("prefect", "torch", "aiohttp", "pyarrow") if name in sys.modules]))
"""
    environment = {**os.environ, "YIVL_CACHE": str(cache.files.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prune --max-bytes -1", "--max-bytes '-1' has to be at least 0"),
        ("show --cache /nowhere", "/nowhere: there is no such folder"),
    ],
)
def test_a_wrong_cache_is_one_message_and_exit_code_2(arguments, message, capsys):
    assert cli.main(["cache", *arguments.split()]) == 2
    assert capsys.readouterr().err.startswith(f"yivl cache {arguments.split()[0]}: {message}")


@FLOWS
@pytest.mark.usefixtures("in_process", "core_in_this_process")
def test_logprobs_reach_the_file(small_dataset, tiny_checkpoint, tmp_path):
    arguments = f"infer --model {tiny_checkpoint} --dataset {small_dataset}/val.jsonl --device cpu --max-new-tokens 3 --output"
    for name, asked, types in (("with", ["--logprobs"], {tuple}), ("without", [], {type(None)})):
        output = str(tmp_path / name)
        assert cli.main([*arguments.split(), output, *asked]) == 0
        rows = list(read_predictions(output))
        assert len(rows) == 3
        assert {type(row.completion_logprobs) for row in rows} == types


@FLOWS
def test_json_is_all_that_is_on_stdout(small_dataset, cli_environment, tmp_path):
    done = run(
        "validate", str(small_dataset / "val.jsonl"), "--output", str(tmp_path / "v"), "--json", environment=cli_environment
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["num_records"] == 3
    assert "Traceback" not in done.stderr


@pytest.fixture
def in_process(prefect_api, monkeypatch) -> Iterator[None]:
    """Commands may run in this process: what they change in it is put back."""
    monkeypatch.setattr(logging.getLogger(), "handlers", logging.getLogger().handlers)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@FLOWS
def test_findings_are_exit_code_1_with_the_clean_records_kept(small_dataset, in_process, tmp_path, capsys):
    path = small_dataset / "with_findings.jsonl"
    path.write_text(
        (small_dataset / "val.jsonl").read_text() + '{"query": "Read it.", "response": "1", "images": ["lost.png"]}\n'
    )
    assert cli.main(["validate", str(path), "--output", str(tmp_path / "v")]) == 1
    output = capsys.readouterr().out
    assert "3 of 4 records are clean" in output
    assert "image_missing" in output


@FLOWS
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("validate {lost}.jsonl --output {new}", 2, "lost.jsonl: there is no such file"),
        ("validate {data}/val.jsonl --output {data}/val.jsonl", 2, "this is a file"),
        ("validate {data}/val.jsonl --output /proc/new", 74, "/proc"),
        ("sft --model {lost} --dataset {data}/val.jsonl --output {data}/val.jsonl", 74, "val.jsonl"),
        ("retrain --model {lost} --dataset {data}/val.jsonl --output {data}/val.jsonl", 74, "val.jsonl"),
        ("sft --model {lost} --dataset {data}/val.jsonl --output {new}", 2, "there is no such folder"),
        ("export --adapter {lost} --merge-lora --output {new}", 2, "adapter_config.json: file is missing"),
        ("infer --model {lost} --dataset {data}/val.jsonl --output {new}", 2, "there is no such folder"),
        ("evaluate --predictions {lost} --output {new}", 2, "give the folder that `yivl infer --output`"),
        ("retrain --model {lost} --dataset {data}/val.jsonl --output {new}", 2, "there is no such folder"),
    ],
)
def test_a_wrong_path_is_told_and_nothing_is_retried(arguments, code, message, small_dataset, in_process, tmp_path, capsys):
    places = {"lost": tmp_path / "lost", "data": small_dataset, "new": tmp_path / "new"}
    assert cli.main(arguments.format(**places).split()) == code
    output = capsys.readouterr()
    assert message in output.err
    assert "Traceback" not in output.err
    assert output.out == ""
    assert "trying again" not in output.err


def children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


@pytest.fixture(scope="module")
def trainings(small_dataset, tiny_checkpoint, cli_environment, tmp_path_factory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Two trainings that take long, by their output folders; started at the same time, and under way."""
    folders = [tmp_path_factory.mktemp("training") / "run" for _ in range(2)]
    with ExitStack() as stack:
        found = {str(folder): stack.enter_context(start_training(folder, small_dataset, tiny_checkpoint, cli_environment))
                 for folder in folders}  # fmt: skip
        for process in found.values():
            stack.callback(process.kill)
        started = time.monotonic()
        while not all(list(folder.glob("checkpoints/step-*")) for folder in folders):
            assert all(process.poll() is None for process in found.values())
            assert time.monotonic() - started < 120
            time.sleep(0.1)
        yield found


def start_training(folder: Path, dataset: Path, checkpoint: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    places = ["--model", str(checkpoint), "--dataset", str(dataset / "train.jsonl"), "--output", str(folder)]
    command = [*YIVL, "sft", *places, "--num-epochs", "100000", "--save-steps", "1", "--device", "cpu"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def training(trainings: dict[str, subprocess.Popen[str]]) -> tuple[str, subprocess.Popen[str]]:
    """One of them, for this test alone."""
    return trainings.popitem()


@FLOWS
@pytest.mark.slow
def test_a_stopped_command_stops_its_child_and_tells_how_to_go_on(training):
    folder, process = training
    (child,) = children_of(process.pid)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"what had been published in {folder} is kept, run the same command with --resume to go on" in errors
    assert "Traceback" not in errors
    assert output == ""
    assert not Path(f"/proc/{child}").exists()


@FLOWS
@pytest.mark.slow
def test_a_killed_command_leaves_no_child_behind(training):
    _, process = training
    (child,) = children_of(process.pid)
    process.kill()
    process.wait()
    for _ in range(300):
        if not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text():
            return
        time.sleep(0.1)
    pytest.fail(f"process {child} still runs 30 s after its parent was killed")


@FLOWS
def test_workers_need_a_server(small_dataset, tiny_checkpoint, tmp_path, prefect_home):
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "home")}
    environment.pop("PREFECT_API_URL", None)
    done = run(
        "infer",
        "--model",
        str(tiny_checkpoint),
        "--dataset",
        str(small_dataset / "val.jsonl"),
        "--output",
        str(tmp_path / "p"),
        "--where",
        "workers",
        environment=environment,
    )
    assert done.returncode == 2
    assert "this needs a Prefect server with workers; set PREFECT_API_URL" in done.stderr


@FLOWS
@pytest.mark.slow
def test_the_temporary_server_is_neither_heard_nor_left_running(small_dataset, tmp_path):
    """The whole output is compared: no traceback of the server's end, no line of Prefect's log."""
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "home")}
    environment.pop("PREFECT_API_URL", None)
    done = run("validate", str(small_dataset / "val.jsonl"), "--output", str(tmp_path / "v"), environment=environment)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "starting a temporary Prefect server (PREFECT_API_URL would name one that runs already)",
        "validate: 3 records, rejected 0",
    ]
    for _ in range(200):
        if not servers_of(tmp_path / "home"):
            return
        time.sleep(0.1)
    pytest.fail("the temporary server still runs 20 s after the command")


def servers_of(home: Path) -> list[str]:
    """The processes that keep their files in a Prefect home."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"PREFECT_HOME={home}".encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


@FLOWS
def test_a_server_that_does_not_answer_is_named(tmp_path):
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = run("evaluate", "--predictions", "p", "--output", "o", environment=environment)
    assert done.returncode == 2
    assert "no Prefect server answers at http://127.0.0.1:9/api" in done.stderr


def test_a_prefect_home_that_cannot_be_written_is_named():
    done = run("evaluate", "--predictions", "p", "--output", "o", environment={**os.environ, "PREFECT_HOME": "/proc/home"})
    assert done.returncode == 74
    assert "Prefect keeps its runs in /proc/home, which cannot be written" in done.stderr


def test_predictions_are_exported_for_a_benchmark(tmp_path, capsys):
    (tmp_path / "Bench.tsv").write_text("index\tquestion\tanswer\n1\tWhat?\tx\n2\tWho?\ty\n")
    rows = [
        Prediction(
            sample_id=str(number), cluster_id=None, record_index=number, source="x", query="What?", history=(), system=None,
            images=(), reference=None, references=(), meta="{}", response="x", finish_reason="stop", prompt_tokens=1,
            completion_tokens=1,
        )
        for number in (1, 2, 3)
    ]  # fmt: skip
    write_part(str(tmp_path / "predictions"), "part-00000.parquet", rows)
    arguments = ["benchmark", "export", "--predictions", str(tmp_path / "predictions"), "--dataset", str(tmp_path / "Bench.tsv")]
    arguments += ["--model-name", "m", "--output", str(tmp_path / "out"), "--file-format", "tsv"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == (
        "2 rows, 0 of them failed and without a prediction\n"
        "       1 rows were asked something else than their question: are these predictions about this benchmark?\n"
        f"       1 predictions are about other records\nresult {tmp_path}/out/m_Bench.tsv\n"
    )
    assert (tmp_path / "out/m_Bench.tsv").read_text().splitlines()[1] == '"1"\t"What?"\t"x"\t"x"'
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_rows"] == 2
    write_part(str(tmp_path / "predictions"), "part-00000.parquet", rows[:1])
    assert cli.main(arguments) == 4
    assert "holds nothing about 1 of 2 rows" in capsys.readouterr().err
