"""Features of a frozen tower on disk: the same training, without decoding and tower."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.dataset import ValidatedDataset
from yivl_core.data.images import ImageStore
from yivl_core.data.validation import validate_dataset
from yivl_core.digests import digest_file
from yivl_core.errors import ConfigurationError, OutputError, StorageError
from yivl_core.model.files import open_checkpoint
from yivl_core.model.modeling import YiVLModel
from yivl_core.model.weights import load_model
from yivl_core.processing.processor import Processor
from yivl_core.progress import Progress, ignore_progress
from yivl_core.training.configuration import TrainingSettings, TrainingSummary
from yivl_core.training.features import FeatureFiles, open_features, tower_features, write_features
from yivl_core.training.packing import pack
from yivl_core.training.samples import SampleReader

Train = Callable[..., TrainingSummary]
MakeDataset = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "features"


def losses(summary: TrainingSummary) -> list[float]:
    lines = map(json.loads, (Path(summary.output) / "metrics.jsonl").read_text().splitlines())
    return [value for line in lines for name, value in line.items() if name in ("loss", "val_loss")]


def stored(cache: Path) -> dict[str, Path]:
    return {path.stem: path for path in cache.rglob("*.safetensors")}


def forbid(monkeypatch: pytest.MonkeyPatch, *parts: str) -> None:
    for owner, name in ((ImageStore, "load"), (YiVLModel, "get_vision_features")):
        if name in parts:
            monkeypatch.setattr(owner, name, lambda *_, name=name: pytest.fail(f"{name} was called"))


@pytest.mark.parametrize(
    "settings",
    [{}, {"target_modules": r"model\.mm_projector\.[03]"}, {"use_dora": True}, {"tuner": "full", "freeze_vision_tower": True}],
)
def test_a_run_learns_the_same_and_a_later_one_opens_no_image(
    settings: dict[str, Any], train: Train, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings |= {"num_epochs": 2, "learning_rate": 0.01, "keep": "last"}
    plain = train("plain", **settings)
    first = train("first", feature_cache=str(cache), **settings)
    assert losses(first) == pytest.approx(losses(plain), rel=1e-4)
    assert len(set(losses(first))) > 4
    assert len(stored(cache)) == 12
    forbid(monkeypatch, "load", "get_vision_features")
    again = train("again", feature_cache=str(cache), **settings)
    assert again.result_digest == first.result_digest


def test_features_are_what_the_tower_gives_of_the_image(train: Train, dataset: Path, tiny_checkpoint: Path, cache: Path) -> None:
    train(feature_cache=str(cache))
    model, processor = load_model(tiny_checkpoint), Processor.from_checkpoint(tiny_checkpoint)
    files = stored(cache)
    images = {digest_file(path): path for path in dataset.parent.glob("*.png")}
    assert files.keys() == images.keys()
    for digest, path in images.items():
        picture = Image.open(path).convert("RGB")
        pixel_values = processor.preprocessor.normalise(processor.preprocessor.to_squares([picture]).squares())
        with torch.no_grad():
            expected = model.model.get_vision_features(pixel_values)[0]
        torch.testing.assert_close(load_file(files[digest])["features"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("queries", [["<image>a<image>b"], ["<image>c", "no image", "<image>d<image>e"]])
def test_features_stand_where_pixels_would(queries: list[str], tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    """Two different images and one of them again, in one round or in several, beside a sample without any."""
    names = ["a.png", "b.png", "a.png"][: sum(query.count("<image>") for query in queries)]
    for number, name in enumerate(("a.png", "b.png")):
        shutil.copyfile(dataset.parent / f"{number}-0.png", tmp_path / name)
    *earlier, last = queries
    row = {"query": last, "response": "Yes.", "images": names, "history": [[query, "Yes."] for query in earlier]}
    rows = [row, {"query": "And now?", "response": "No."}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    validate_dataset(ValidationConfig(dataset=(str(tmp_path / "rows.jsonl"),), output=str(tmp_path / "data")))
    files = open_features(str(tmp_path / "features"), open_checkpoint(tiny_checkpoint), torch.float32, torch.device("cpu"))
    validated, model = ValidatedDataset.open(str(tmp_path / "data")), load_model(tiny_checkpoint)
    plain, reader = (SampleReader(validated, tiny_checkpoint, None, each) for each in (None, files))
    preprocessor = plain.processor.preprocessor
    write_features(files, model, preprocessor, [reader.unseen([0, 1])], 2, ignore_progress)
    assert len(stored(tmp_path / "features")) == 2
    [row_of_pixels], [row_of_features] = (pack([each.load(1), each.load(0)], 1000) for each in (plain, reader))
    expected = tower_features(model, preprocessor.normalise(row_of_pixels.pixels.squares()))
    assert row_of_features.features is not None
    assert row_of_features.pixels.num_images == 0
    torch.testing.assert_close(row_of_features.features, expected, rtol=1e-4, atol=1e-5)
    assert len(expected) == len(names)
    assert (expected[0] - expected[1]).abs().max() > 0.1
    assert torch.equal(row_of_features.image_places, row_of_pixels.image_places)


def test_only_what_is_not_there_is_made_and_each_image_once(train: Train, make_dataset: MakeDataset, cache: Path) -> None:
    done: list[tuple[int, int | None]] = []

    def watch(progress: Progress) -> None:
        if progress.stage == "features":
            done.append((progress.done, progress.total))

    dataset = make_dataset(40)  # of which ten have two images and ten none
    records = (dataset.parent / "rows.jsonl").read_text()
    (dataset.parent / "twice.jsonl").write_text(records + records.replace("What is it?", "And what is this?"))
    twice = str(dataset.parent / "twice")
    validate_dataset(ValidationConfig(dataset=(str(dataset.parent / "twice.jsonl"),), output=twice))
    train("first", dataset=twice, feature_cache=str(cache), on_progress=watch)
    assert len(done) > 1
    assert done[-1] == (40, 40)
    assert len(stored(cache)) == 40
    gone = sorted(stored(cache).values())[:3]
    gone[0].unlink()
    gone[1].write_bytes(b"half")
    gone[2].write_bytes(gone[2].read_bytes()[:-1])
    done.clear()
    train("second", dataset=twice, feature_cache=str(cache), on_progress=watch)
    assert done[-1] == (3, 3)
    assert len({path.stat().st_size for path in stored(cache).values()}) == 1


def test_images_that_no_step_wants_are_left_alone(train: Train, make_dataset: MakeDataset, cache: Path) -> None:
    train(dataset=str(make_dataset(40)), num_epochs=0.1, val_fraction=0.05, feature_cache=str(cache))
    assert 0 < len(stored(cache)) < 12


def test_processes_make_and_read_the_same(train: Train, tmp_path: Path) -> None:
    settings = {"keep": "last", "num_epochs": 2}
    summaries = [
        train(str(number), num_workers=number, feature_cache=str(tmp_path / f"features {number}"), **settings)
        for number in (0, 2)
    ]
    assert summaries[0].result_digest == summaries[1].result_digest


def test_a_run_that_was_killed_while_they_were_made_goes_on(train: Train, make_dataset: MakeDataset, cache: Path) -> None:
    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.stage == "features":
            raise Killed

    settings: dict[str, Any] = {"dataset": str(make_dataset(40)), "keep": "last"}
    whole = train("whole", feature_cache=str(cache.with_name("other")), **settings)
    with pytest.raises(Killed):
        train(feature_cache=str(cache), on_progress=kill, **settings)
    assert 0 < len(stored(cache)) < 40
    assert train(feature_cache=str(cache), resume=True, **settings).result_digest == whole.result_digest


def test_a_run_is_gone_on_with_as_it_began_wherever_the_cache_is(train: Train, cache: Path) -> None:
    first = train(feature_cache=str(cache))
    cache.rename(cache.with_name("moved"))
    assert train(feature_cache=str(cache.with_name("moved")), resume=True).result_digest == first.result_digest
    with pytest.raises(OutputError, match=r"\n  settings.feature_cache: True there, None now$"):
        train(resume=True)


def test_towers_dtypes_and_preparations_never_share_features(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def place(checkpoint: Path, dtype: torch.dtype = torch.float32) -> FeatureFiles:
        return open_features(str(tmp_path / "features"), open_checkpoint(checkpoint), dtype, torch.device("cpu"))

    def changed(name: str, file: str | Path, change: Callable[[dict[str, Any]], Any]) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_checkpoint, folder)
        path = folder / file
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))
        else:
            tensors = load_file(path)
            change(tensors)
            save_file(tensors, path, metadata={"format": "pt"})
        return folder

    def add(part: str) -> Callable[[dict[str, Any]], Any]:
        return lambda tensors: tensors[next(name for name in tensors if part in name)].add_(1)

    first = place(tiny_checkpoint)
    [vision] = (path.relative_to(tiny_checkpoint) for path in tiny_checkpoint.glob("vit/*"))
    others = [
        place(tiny_checkpoint, torch.bfloat16),
        place(changed("tower", f"{vision}/model.safetensors", add("layers.0"))),
        place(changed("layer", "config.json", lambda content: content.update(mm_vision_select_layer=-3))),
        place(changed("activation", f"{vision}/config.json", lambda content: content.update(hidden_act="quick_gelu"))),
        place(changed("mean", f"{vision}/preprocessor_config.json", lambda content: content.update(image_mean=[0.4, 0.4, 0.4]))),
    ]
    assert len({files.folder for files in (first, *others)}) == 6
    assert place(changed("decoder", "model.safetensors", add("lm_head"))) == first


def test_a_damaged_file_and_a_full_disk_are_told_with_the_remedy(
    train: Train, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("yivl_core.training.features.publish_bytes", _full)
        with pytest.raises(StorageError, match="the disk is full; free some space and run it again"):
            train(feature_cache=str(cache))
    train(feature_cache=str(cache), resume=True)
    whole = train("whole", feature_cache=str(cache)).result_digest
    path = min(stored(cache).values())
    content = path.read_bytes()
    for number, damaged in enumerate([b"\xff" * len(content), content[:-1] + bytes([content[-1] ^ 1])]):
        path.write_bytes(damaged)
        with pytest.raises(
            StorageError, match=rf"{path.name}: features of an image were damaged, .*; resume the run, which makes"
        ):
            train(str(number), feature_cache=str(cache), num_epochs=1)
        assert train(str(number), feature_cache=str(cache), num_epochs=1, resume=True).result_digest == whole


def _full(url: str, _: bytes) -> None:
    raise StorageError(f"{url}: the disk is full; free some space and run it again")


def test_features_that_are_gone_in_the_middle_of_a_run_are_made_anew_when_it_is_resumed(train: Train, cache: Path) -> None:
    def clear(progress: Progress) -> None:
        if progress.stage == "train" and progress.done == 1:
            shutil.rmtree(cache, ignore_errors=True)

    with pytest.raises(StorageError, match=r"there is no such file .*; features of an image are kept there; resume"):
        train(feature_cache=str(cache), on_progress=clear, num_epochs=3)
    assert not stored(cache)
    train(feature_cache=str(cache), resume=True, num_epochs=3)


def test_two_runs_may_fill_a_cache_at_the_same_time(train: Train, make_dataset: MakeDataset, cache: Path) -> None:
    settings: dict[str, Any] = {"dataset": str(make_dataset(60)), "keep": "last", "num_epochs": 0.3}
    others: list[TrainingSummary] = []

    def train_another(progress: Progress) -> None:
        if progress.stage == "features" and not others:
            others.append(train("other", feature_cache=str(cache), **settings))

    one = train("one", feature_cache=str(cache), on_progress=train_another, **settings)
    assert others[0].result_digest == one.result_digest


def test_what_has_no_room_is_refused_before_anything_is_written(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, disk = shutil.disk_usage(tmp_path), tmp_path / "small disk"
    disk.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=50_000) if disk in place.parents else usage)
    with pytest.raises(ConfigurationError, match=r"disk/features: the features of 12 images take 0.1 MB, and 0.1 MB are free"):
        train(feature_cache=str(disk / "features"))
    assert not stored(disk)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_one_is_refused_before_anything_is_written(train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"feature_cache /.*/file.*: a part of this path is a file, not a folder; check"):
        train(feature_cache=str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match=r"s3://bucket/features: a cache of features has to be a folder on this machine"):
        train(feature_cache="s3://bucket/features")
    assert not (tmp_path / "run").exists()


def test_what_killed_runs_left_half_written_long_ago_is_removed(train: Train, cache: Path) -> None:
    train("first", feature_cache=str(cache))
    path = min(stored(cache).values())
    path.unlink()
    old, new = (path.with_name(f".{path.name}.tmp-{name}") for name in ("0123456789ab", "ba9876543210"))
    for place in (old, new):
        place.touch()
    os.utime(old, (1, 1))
    train("second", feature_cache=str(cache))
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize("settings", [{"target_modules": "all"}, {"tuner": "full"}])
def test_a_tower_that_is_trained_has_no_features_to_keep(settings: dict[str, Any], train: Train, cache: Path) -> None:
    with pytest.raises(ConfigurationError, match="feature_cache keeps what a frozen vision tower gives, and this run trains the"):
        train(feature_cache=str(cache), **settings)


@pytest.mark.parametrize(("name", "value"), [("augmentation", 0.5), ("cache_samples", True)])
def test_what_needs_the_images_goes_without(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=f"`feature_cache` keeps what images gave, and `{name}` needs the images; leave"):
        TrainingSettings(feature_cache="features", **{name: value})
    with pytest.raises(ValidationError, match="at least 1 character"):
        TrainingSettings(feature_cache="")


def test_answers_are_given_to_images_not_to_features(train: Train, cache: Path) -> None:
    settings = {"val_fraction": 0.3, "eval_answers": 2}
    assert train("cached", feature_cache=str(cache), **settings).val_cer == pytest.approx(train("plain", **settings).val_cer)
