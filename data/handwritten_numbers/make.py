"""Makes this folder: handwritten numbers, set from the UCI optical digits that scikit-learn ships.

    python data/handwritten_numbers/make.py [FOLDER]

Needs scikit-learn. The scans are divided first, so that no scan stands in a training and in a validation image. Each image is a
strip of 3 to 6 scans, enlarged four times, with small gaps. The same program gives the same pixels everywhere.
"""

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

SEED = 20_240_501
QUERY = "Read the number in the image."
NUM_VAL_SCANS = 450
NUM_IMAGES = {"train": 600, "val": 200}
SCALE = 4  # scans are 8 x 8
MAX_GAP_PX = 6
PROVENANCE = {
    "source": "Optical Recognition of Handwritten Digits, UCI Machine Learning Repository; the 1,797 scans of its test part, "
    "as sklearn.datasets.load_digits gives them",
    "citation": "E. Alpaydin, C. Kaynak (1998). Optical Recognition of Handwritten Digits. UCI Machine Learning Repository. "
    "https://doi.org/10.24432/C50P49",
    "licence": "CC BY 4.0",
    "changes": "scans inverted to dark ink on white, enlarged four times without smoothing, set side by side",
}

Pixels = npt.NDArray[np.uint8]


def main(folder: Path) -> None:
    """Write images, train.jsonl, val.jsonl and manifest.json."""
    digits = load_digits()
    scans = [enlarge(scan) for scan in digits.images]
    labels = [int(label) for label in digits.target]
    generator = random.Random(SEED)
    images: dict[str, Any] = {}
    for part, indices in split_scans(len(scans), generator).items():
        (folder / "images" / part).mkdir(parents=True, exist_ok=True)
        lines = []
        for number, strip in enumerate(draw_strips(indices, NUM_IMAGES[part], generator), 1):
            name = f"images/{part}/{number:04}.png"
            Image.fromarray(set_strip([scans[index] for index in strip], generator)).save(folder / name, optimize=True)
            response = "".join(str(labels[index]) for index in strip)
            lines.append(json.dumps({"query": QUERY, "response": response, "images": [name]}) + "\n")
            images[name] = {"scans": strip, "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    scans_sha256 = hashlib.sha256(digits.images.astype(np.uint8).tobytes()).hexdigest()
    manifest = {**PROVENANCE, "seed": SEED, "scans_sha256": scans_sha256, "images": images}
    (folder / "manifest.json").write_text(to_json(manifest), encoding="utf-8")


def enlarge(scan: npt.NDArray[np.float64]) -> Pixels:
    """A scan (8 x 8, ink 0 to 16) as dark ink on white, 32 x 32."""
    ink = np.rint(scan * (255 / 16))
    return np.kron(255 - ink, np.ones((SCALE, SCALE))).astype(np.uint8)


def split_scans(num_scans: int, generator: random.Random) -> dict[str, list[int]]:
    """Indices of the scans for each part; no index is in both."""
    indices = list(range(num_scans))
    generator.shuffle(indices)
    return {"train": sorted(indices[NUM_VAL_SCANS:]), "val": sorted(indices[:NUM_VAL_SCANS])}


def draw_strips(indices: list[int], num_strips: int, generator: random.Random) -> list[list[int]]:
    """Scan indices of each strip. All scans are used equally often, give or take one."""
    pile: list[int] = []
    strips = []
    for _ in range(num_strips):
        length = generator.randint(3, 6)
        while len(pile) < length:
            more = list(indices)
            generator.shuffle(more)
            pile = more + pile
        strips.append([pile.pop() for _ in range(length)])
    return strips


def set_strip(scans: list[Pixels], generator: random.Random) -> Pixels:
    """Scans side by side, with a gap of 0 to 6 white pixels before each and after the last."""
    height = scans[0].shape[0]
    pieces = []
    for scan in scans:
        pieces += [np.full((height, generator.randint(0, MAX_GAP_PX)), 255, dtype=np.uint8), scan]
    pieces.append(np.full((height, generator.randint(0, MAX_GAP_PX)), 255, dtype=np.uint8))
    return np.hstack(pieces)


def to_json(manifest: dict[str, Any]) -> str:
    """The manifest with one line for each image."""
    head = json.dumps({name: value for name, value in manifest.items() if name != "images"}, indent=1)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in manifest["images"].items())
    return f'{head[:-2]},\n "images": {{\n{lines}\n }}\n}}\n'


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
