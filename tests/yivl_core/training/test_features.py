"""Features of a frozen tower on disk: the same training, without decoding and tower."""

import json
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
from yivl_core.data.images import ImageStore
from yivl_core.data.validation import validate_dataset
from yivl_core.digests import digest_file
from yivl_core.errors import ConfigurationError, StorageError
from yivl_core.model.files import open_checkpoint
from yivl_core.model.modeling import YiVLModel
from yivl_core.model.weights import load_model
from yivl_core.processing.processor import Processor
from yivl_core.progress import Progress
from yivl_core.training.configuration import TrainingSettings, TrainingSummary
from yivl_core.training.features import FeatureFiles, open_features

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


def test_towers_dtypes_and_preparations_never_share_features(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def place(checkpoint: Path, dtype: torch.dtype = torch.float32) -> FeatureFiles:
        return open_features(str(tmp_path / "features"), open_checkpoint(checkpoint), dtype)

    def changed(name: str, file: str, change: Callable[[dict[str, Any]], Any]) -> Path:
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
        place(changed("mean", f"{vision}/preprocessor_config.json", lambda content: content.update(image_mean=[0.4, 0.4, 0.4]))),
    ]
    assert len({files.folder for files in (first, *others)}) == 4
    assert place(changed("decoder", "model.safetensors", add("lm_head"))) == first


def test_a_damaged_file_and_a_full_disk_are_told_with_the_remedy(
    train: Train, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("yivl_core.training.features.save_tensors", _full)
        with pytest.raises(StorageError, match="the disk is full; free some space and run it again"):
            train(feature_cache=str(cache))
    train(feature_cache=str(cache), resume=True)
    path = min(stored(cache).values())
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(StorageError, match=rf"{path.name}: features of an image cannot be read .* remove that file and resume"):
        train("again", feature_cache=str(cache))
    path.unlink()
    train("again", feature_cache=str(cache), resume=True)


def _full(path: Path, _: Any) -> None:
    raise OSError(28, "No space left on device", str(path))


def test_what_has_no_room_is_refused_before_anything_is_written(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, disk = shutil.disk_usage(tmp_path), tmp_path / "small disk"
    disk.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=50_000) if place == disk else usage)
    with pytest.raises(
        ConfigurationError, match=r"the features of 12 images take 0.1 MB, and 0.1 MB are free on that disk; choose"
    ):
        train(feature_cache=str(disk / "features"))
    assert not any(disk.iterdir())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [{"target_modules": "all"}, {"tuner": "full"}])
def test_a_tower_that_is_trained_has_no_features_to_keep(settings: dict[str, Any], train: Train, cache: Path) -> None:
    with pytest.raises(ConfigurationError, match="feature_cache keeps what a frozen vision tower gives, and this run trains the"):
        train(feature_cache=str(cache), **settings)


def test_images_that_are_changed_have_none_either() -> None:
    with pytest.raises(ValidationError, match="`augmentation` changes images, and `feature_cache` keeps what they gave; leave"):
        TrainingSettings(augmentation=0.5, feature_cache="features")


def test_answers_are_given_to_images_not_to_features(train: Train, cache: Path) -> None:
    settings = {"val_fraction": 0.3, "eval_answers": 2}
    assert train("cached", feature_cache=str(cache), **settings).val_cer == pytest.approx(train("plain", **settings).val_cer)
