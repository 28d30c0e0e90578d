"""The recipe's modules, which lie outside of the packages, and a folder of fonts that needs no Debian package."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest

RECIPE = Path(__file__).resolve().parents[3] / "data" / "nano" / "recipe"
WORDS = ["apple", "Bread", "coffee", "invoice", "quartz", "jumble", "vexing", "hawk"]


@pytest.fixture(scope="session", autouse=True)
def _recipe_on_path() -> Iterator[None]:
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))


@pytest.fixture(scope="session")
def fonts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What fonts.py writes, made of two faces that matplotlib ships."""
    folder = tmp_path_factory.mktemp("fonts")
    entries = []
    for name, kind in (("DejaVuSans", "sans"), ("DejaVuSansMono-Bold", "mono")):
        source = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
        (folder / source.name).write_bytes(source.read_bytes())
        entries.append({"file": source.name, "kind": kind, "weight": 0.5, "caps_only": False})
    entries.append({"file": "DejaVuSans.ttf", "kind": "display", "weight": 0.5, "caps_only": True})
    (folder / "fonts.json").write_text(json.dumps(entries))
    (folder / "words.txt").write_text("\n".join(WORDS))
    return folder
