"""The start of the model, and the whole recipe on very little."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from yivl_core.data.records import Record
from yivl_core.model.configuration import read_config
from yivl_core.model.files import checkpoint_digest, open_checkpoint
from yivl_core.model.weights import expected_shapes, load_model
from yivl_core.processing.processor import Processor
from yivl_core.processing.tokenization import Tokenizer
from yivl_core.training.configuration import TrainingConfig


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from start import write_start

    folder = tmp_path_factory.mktemp("nano") / "start"
    write_start(folder, seed=0)
    return folder


def test_the_weights_take_less_than_32_megabytes_with_the_tower_twice(start_folder: Path) -> None:
    shapes = {name: math.prod(shape) for name, shape in expected_shapes(read_config(start_folder)).items()}
    tower = sum(count for name, count in shapes.items() if name.startswith("model.vision_tower."))
    assert 2 * (sum(shapes.values()) + tower) < 32_000_000
    assert sum(path.stat().st_size for path in start_folder.rglob("*.safetensors")) < 32_000_000


def test_yis_special_tokens_are_at_yis_places(start_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(start_folder)
    assert json.loads((start_folder / "added_tokens.json").read_text()) == {
        "<unk>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2, "<|im_start|>": 6, "<|im_end|>": 7, "<|im_sep|>": 8,
    }  # fmt: skip
    assert [len(tokenizer.encode(text, parse_special=True)) for text in ("###", "<|endoftext|>", "<|Human|>")] == [1, 1, 1]
    assert len(tokenizer.encode("###")) == 1


@pytest.mark.parametrize("text", ["TOTAL 12.50", "a  b", "#1 ## ~`|", "Café 你好 🙂", "Human:no", "Read the text"])
def test_every_text_survives_the_tokenizer(text: str, start_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(start_folder)
    ids = tokenizer.encode(" " + text)
    assert tokenizer.decode(ids).removeprefix(" ") == text
    assert len(ids) == 1 + sum(1 if " " <= character <= "~" else len(character.encode()) for character in text)


def test_a_prompt_is_hardly_longer_than_its_image(start_folder: Path) -> None:
    from questions import ALL_QUESTIONS

    processor = Processor.from_checkpoint(start_folder)
    for question in ALL_QUESTIONS:
        record = Record(query=question, response="0872", images=("a.png",))
        num_tokens = processor.count_tokens(record, with_response=True)
        assert num_tokens - open_checkpoint(start_folder).num_image_tokens <= 20


def test_the_settings_are_those_of_a_training(start_folder: Path) -> None:
    from receipts import COMMON, TUNINGS
    from recipe import TRAINING

    places = {"model": str(start_folder), "dataset": "d", "output": "o"}
    for settings in (TRAINING, *(COMMON | tuning for tuning in TUNINGS.values())):
        TrainingConfig(**settings, **places)


@pytest.mark.slow
def test_the_start_that_the_recipe_makes_is_that_of_its_seed(tmp_path: Path) -> None:
    import recipe
    from start import write_start

    recipe.make_start(tmp_path / "made")
    write_start(tmp_path / "written", recipe.SEED)
    assert checkpoint_digest(tmp_path / "made") == checkpoint_digest(tmp_path / "written")
    before = (tmp_path / "made" / "config.json").stat().st_mtime_ns
    recipe.make_start(tmp_path / "made")
    assert (tmp_path / "made" / "config.json").stat().st_mtime_ns == before, "what is there is not made again"


@pytest.mark.slow
def test_the_recipe_makes_a_model_and_goes_on_where_it_stopped(
    fonts_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import recipe
    import start

    small = replace(
        start.SHAPE, hidden_size=32, intermediate_size=64, vision_hidden_size=32, vision_num_layers=3, num_layers=2,
        image_size=56, patch_size=14,
    )  # fmt: skip
    monkeypatch.setattr(recipe, "NUM_LINES", 48)
    monkeypatch.setattr(recipe, "NUM_VAL_LINES", 8)
    monkeypatch.setattr(recipe, "TRAINING", recipe.TRAINING | {"batch_size": 16, "num_epochs": 2, "compile": False})
    start.write_start(tmp_path / "start", recipe.SEED, small)
    recipe.make_model(fonts_folder, tmp_path, num_workers=1)
    load_model(tmp_path / "run" / "model")
    warm_up, training = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("warm-up", "run"))
    differing = {name for name in training if warm_up[name] != training[name]}
    assert differing <= {"dataset", "output", "num_epochs", "num_workers"}, "else the compiler's work would be another"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    recipe.make_model(fonts_folder, tmp_path, num_workers=1)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.slow
def test_figures_on_receipts_are_those_of_the_answers(
    start_folder: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained model answers nothing right; the intervals come from the receipts."""
    import numpy as np
    import receipts

    bare = {str(number): np.array([number, 100.0, 5 - number, 10]) for number in range(6)}
    better = {name: values - [min(values[0], 1), 0, 0, 0] for name, values in bare.items()}
    figures: dict[str, Any] = receipts.figures(better, bare)
    assert figures["cer"]["value"] == pytest.approx(100 * 10 / 600)
    assert figures["exact"]["value"] == pytest.approx(100 * 15 / 60)
    assert figures["change"]["value"] == pytest.approx(-100 * 5 / 600)
    assert all(values["low"] <= values["value"] <= values["high"] for values in figures.values())
    receipts.write_lines(shared_data / "data" / "sroie_lines", tmp_path, "dev")
    lines = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "dev")
    }
    assert len(lines["train"]) + len(lines["dev"]) == 10_409
    assert not {line["cluster_id"] for line in lines["train"]} & {line["cluster_id"] for line in lines["dev"]}
    assert all((tmp_path / line["images"][0]).is_file() for line in lines["dev"])


def test_figures_on_one_part_of_the_receipts_never_stand_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import receipts

    worked_in = {}

    def measure(model: Path, output: Path, part: str, tunings: list[str]) -> dict[str, Any]:
        worked_in[part] = output
        return {}

    monkeypatch.setattr(receipts, "measure", measure)
    monkeypatch.setenv("YIVL_TEST_DATA", str(tmp_path))
    for part in ("dev", "val"):
        receipts.main(["--output", str(tmp_path / "out"), "--on", part])
    assert worked_in["dev"] != worked_in["val"]
    assert all(folder.parent == tmp_path / "out" for folder in worked_in.values())


@pytest.mark.slow
def test_figures_on_rendered_lines_count_each_line_once(
    start_folder: Path, fonts_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rendered

    monkeypatch.setattr(rendered, "NUM_VAL_LINES", 8)
    monkeypatch.setattr(rendered, "QUESTIONS", {"as-printed": rendered.READ_AS_PRINTED})
    [bands] = rendered.measure(start_folder, fonts_folder, tmp_path, num_workers=1).values()
    asked = [json.loads(line) for line in (tmp_path / "lines" / "as-printed.jsonl").read_text().splitlines()]
    assert 0 < len(asked) <= 8
    assert (bands["all"][1], bands["all"][3]) == (sum(len(record["response"]) for record in asked), len(asked))
    assert len(rendered.table({"as-printed": bands}).splitlines()) == 2 + len(bands)
