import hashlib
import io
import json
import random
import string
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.validation import validate_dataset

PRINTABLE = {chr(code) for code in range(32, 127)}


def test_texts_are_printable_ascii_of_the_promised_lengths_and_cover_every_character():
    from texts import TextSampler

    sampler, rng = TextSampler(["apple", "Bread", "coffee", "invoice", "quartz", "jumble", "vexing", "hawk"]), random.Random(1)
    texts = [sampler.sample(rng) for _ in range(15_000)]
    lengths = Counter(map(len, texts))
    assert min(lengths) == 1
    assert max(lengths) <= 32
    assert 0.03 < sum(lengths[length] for length in lengths if length > 24) / len(texts) < 0.08
    assert 10 <= np.median([len(text) for text in texts]) <= 14
    assert 0.3 < sum(lengths[length] for length in lengths if length > 16) / len(texts) < 0.5, "most errors are in long lines"
    assert all(text == " ".join(text.split()) for text in texts)
    counts = Counter("".join(texts))
    assert set(counts) == PRINTABLE
    assert min(counts.values()) >= 20


def test_a_line_depends_on_seed_and_index_only(fonts_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import render

    monkeypatch.setattr(render, "BLOCK_LINES", 8)
    folders = [tmp_path / name for name in ("whole", "longer", "other")]
    for folder, num_lines, seed in zip(folders, (20, 30, 20), (5, 5, 6), strict=True):
        render.render_lines(fonts_folder, folder, num_lines, seed, num_workers=1)
    whole, longer, other = (digest_lines(folder) for folder in folders)
    assert whole == longer[:20]
    assert not set(whole) & set(other)
    assert sorted(path.name for path in folders[0].iterdir()) == ["images", "train.jsonl"]


def test_several_workers_write_what_one_writes(fonts_folder: Path, tmp_path: Path):
    import render

    for num_workers in (1, 2):
        render.render_lines(fonts_folder, tmp_path / str(num_workers), 1_005, seed=2, num_workers=num_workers)
    assert digest_lines(tmp_path / "1") == digest_lines(tmp_path / "2")
    assert (tmp_path / "2" / "images" / "0001" / "00001004.jpg").is_file()


def test_fonts_that_are_not_there_are_told_before_anything_starts(tmp_path: Path):
    import recipe
    import render
    import rendered

    with pytest.raises(SystemExit, match=r"nowhere: words\.txt is missing; make the folder with `fonts.py --output .*nowhere`"):
        render.render_lines(tmp_path / "nowhere", tmp_path / "lines", 10, seed=1, num_workers=2)
    for script in (recipe, rendered):
        with pytest.raises(SystemExit, match=r"nowhere: words\.txt is missing"):
            script.main(["--fonts", str(tmp_path / "nowhere"), "--output", str(tmp_path / "output")])
    assert not (tmp_path / "output").exists()


def test_workers_that_could_not_start_are_not_tried_for_ever(tmp_path: Path):
    import render

    (tmp_path / "words.txt").write_text("word")
    (tmp_path / "fonts.json").write_text("[")
    with pytest.raises(json.JSONDecodeError):
        render.render_lines(tmp_path, tmp_path / "lines", 10, seed=1, num_workers=2)


@pytest.mark.slow
def test_no_worker_outlives_a_rendering_that_is_killed(fonts_folder: Path, repository: Path, tmp_path: Path):
    script = repository / "data" / "nano" / "recipe" / "render.py"
    options = {"fonts": fonts_folder, "output": tmp_path / "lines", "num-lines": 1_000_000, "seed": 1, "num-workers": 2}
    command = [sys.executable, str(script), *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("lines/images/0001/*.jpg")):
            assert process.poll() is None
            time.sleep(0.1)
        workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
        process.kill()
    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=60)[1] == []


def test_what_is_joined_appears_whole(fonts_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever finds train.jsonl takes it for all lines."""
    import render

    monkeypatch.setattr(render, "BLOCK_LINES", 8)
    read, num_read = Path.read_text, Counter()

    def fail_at_second(path: Path, *arguments: object, **settings: object) -> str:
        num_read[path.suffix] += 1
        if num_read[".part"] == 2:
            raise OSError(28, "No space left on device")
        return read(path, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fail_at_second)
        with pytest.raises(OSError, match="No space left"):
            render.render_lines(fonts_folder, tmp_path, 20, seed=5, num_workers=1)
    assert not (tmp_path / "train.jsonl").exists()
    render.render_lines(fonts_folder, tmp_path, 20, seed=5, num_workers=1)
    assert len(digest_lines(tmp_path)) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "train.jsonl"]


@pytest.mark.parametrize("option", ["--num-lines=0", "--num-workers=0", "--seed=-1"])
def test_numbers_that_make_no_sense_are_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import render

    with pytest.raises(SystemExit, match="2"):
        render.main(["--output", str(tmp_path / "lines"), "--num-lines", "3", option])
    assert f"{option.split('=')[0]} has to be" in capsys.readouterr().err
    assert not (tmp_path / "lines").exists()


def test_records_ask_for_what_they_answer(fonts_folder: Path):
    import questions
    from render import LineMaker

    maker = LineMaker(fonts_folder, seed=3)
    met = Counter()
    for index in range(2_000):
        _, question, answer = maker.make(index)[0]
        met[question] += 1
        assert answer.strip() == answer != ""
        if question == questions.READ_IN_CAPITALS:
            assert answer == answer.upper()
        if question == questions.READ_NUMBER:
            assert answer.isdecimal()
    assert set(questions.ALL_QUESTIONS) < set(met)
    assert 0.32 < met[questions.READ_AS_PRINTED] / 2_000 < 0.42
    assert 0.32 < met[questions.READ_IN_CAPITALS] / 2_000 < 0.42
    others = set(met) - set(questions.ALL_QUESTIONS)
    assert len(others) > 200, "other wordings are hardly ever the same"
    assert {len(question.encode()) > len(question) for question in others} == {True, False}, "some are in other scripts"


def test_other_wordings_ask_for_one_of_the_two_answers():
    import questions

    rng = random.Random(1)
    asked = [questions.choose_question("Net 5", rng) for _ in range(4_000)]
    assert {answer for _, answer in asked} == {"Net 5", "NET 5"}
    for question, answer in asked:
        assert question.strip() == question != ""
        is_for_capitals = any(mark in question.lower() for mark in ("capital", "upper", "caps", "block letters"))
        assert (answer == "NET 5") == is_for_capitals, question


def test_some_lines_go_on_with_the_same_picture_or_another(fonts_folder: Path, tmp_path: Path):
    from render import MAX_ROUNDS, render_lines

    render_lines(fonts_folder, tmp_path / "lines", 1_000, seed=5, num_workers=1)
    records = [json.loads(line) for line in (tmp_path / "lines" / "train.jsonl").read_text().splitlines()]
    longer = [record for record in records if record["history"]]
    assert 50 < len(longer) < 110
    assert {len(record["history"]) + 1 for record in longer} <= set(range(2, MAX_ROUNDS + 1))
    second = Counter(record["images"][1] is None for record in longer)
    assert min(second.values()) > 0.3 * len(longer)
    validated = validate_dataset(
        ValidationConfig(dataset=(str(tmp_path / "lines" / "train.jsonl"),), output=str(tmp_path / "validated"))
    )
    assert (validated.num_records, validated.num_errors) == (1_000, 0)
    assert validated.num_images == sum(image is not None for record in records for image in record["images"])
    for record in longer:
        if record["images"] == [record["images"][0], None]:
            assert record["history"][0][1].upper() == record["response"].upper()


def test_pictures_keep_their_size_and_show_ink(fonts_folder: Path):
    from render import LineMaker

    maker, modes = LineMaker(fonts_folder, seed=4), Counter()
    for index in range(1_000):
        jpeg, _, answer = maker.make(index)[0]
        image = Image.open(io.BytesIO(jpeg))
        modes[image.mode] += 1
        assert 8 <= image.height <= 48, index
        assert 4 <= image.width <= 640, index
        pixels = np.asarray(image.convert("L"), np.int16)
        assert np.ptp(pixels) > 35, (index, answer)
    assert 0.10 < modes["RGB"] / 1_000 < 0.20
    assert modes["L"] + modes["RGB"] == 1_000


def test_every_character_leaves_its_own_ink(fonts_folder: Path):
    from glyphs import Typesetter

    typesetter = Typesetter(fonts_folder)
    inks = {typesetter.set_text(character, 0, 36).ink.tobytes() for character in string.printable[:94]}
    assert len(inks) == 94


def test_faces_without_small_letters_show_capitals_only(fonts_folder: Path):
    from glyphs import Typesetter

    typesetter, rng = Typesetter(fonts_folder), random.Random(0)
    assert {typesetter.choose_face("TOTAL 12", rng) for _ in range(100)} == {0, 1, 2}
    assert {typesetter.choose_face("Total 12", rng) for _ in range(100)} == {0, 1}


def digest_lines(folder: Path) -> list[tuple[str, str, str]]:
    """Question, answer and digest of the picture of each record, in order."""
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for index, record in enumerate(records):
        assert list(record) == ["query", "response", "history", "images"]
        assert record["images"][0].endswith(f"/{index:08}.jpg")
    return [
        (record["query"], record["response"], hashlib.sha256((folder / record["images"][0]).read_bytes()).hexdigest())
        for record in records
    ]


def test_styles_of_faces_are_told_from_their_names():
    from fonts import mark_style

    names = {"Regular": "R", "Bold Oblique": "BI", "Cond Italic": "RCI", "Bold SansNarrow-Bold": "BC", "Light": "L"}
    assert {name: mark_style(name) for name in names} == names


def test_each_class_of_faces_gets_its_share_of_the_lines():
    from fonts import CLASS_SHARES, share_weights

    kinds = ["sans", "sans", "sans", "mono", "courier", "receipt", "serif", "hand", "display"]
    entries = [{"family": f"{kind} {number // 2}", "kind": kind, "weight": 1.0} for number, kind in enumerate(kinds)]
    share_weights(entries)
    totals = Counter()
    for entry in entries:
        totals[entry["kind"]] += entry["weight"]
    assert totals == pytest.approx(CLASS_SHARES, abs=1e-5)
    assert entries[0]["weight"] == entries[1]["weight"] < entries[2]["weight"] < 1.5 * entries[0]["weight"]
