"""Small pictures of a dataset whose images were fetched."""

from pathlib import Path
from typing import Any

import pytest

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.validation import validate_dataset
from yivl_core.evaluation.thumbnails import Thumbnails
from yivl_core.outputs.predictions import PredictionImage


def test_pictures_are_found_in_the_cache_of_this_machine(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YIVL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text(f'{{"query": "a", "response": "b", "images": ["{web.image(1)}"]}}\n')
    config = ValidationConfig(dataset=(str(tmp_path / "rows.jsonl"),), output=str(tmp_path / "out"), allow_url=(web.url,))
    assert validate_dataset(config).num_images == 1
    (blob,) = (path for path in (tmp_path / "cache" / "blobs").rglob("*") if path.is_file())
    image = PredictionImage(uri=f"{web.url}/1.png", sha256=blob.name)
    (tmp_path / "cache").rename(tmp_path / "moved")
    lost = Thumbnails(config.output, {blob.name}).make(image)
    assert lost.problem == "is not there any more"
    monkeypatch.setenv("YIVL_CACHE", str(tmp_path / "moved"))
    found = Thumbnails(config.output, {blob.name}).make(image)
    assert found.problem is None
    assert found.data_uri is not None
