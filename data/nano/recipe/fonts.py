"""Collects the fonts and the word list of the recipe from Debian packages.

    python data/nano/recipe/fonts.py --output .fonts

Needs a Debian or Ubuntu system with its package lists (`apt-get update`), but no root: packages are downloaded and unpacked in a
temporary folder. `families.csv` says which families and styles are taken. Each face is cut down to printable ASCII and written to
the output folder, together with `fonts.json` (a list of entries, see `FontEntry`) and `words.txt` (one dictionary word a line).
"""

import argparse
import csv
import json
import logging
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import TypedDict

from fontTools.pens.recordingPen import RecordingPen
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont, TTLibError

FAMILIES_PATH = Path(__file__).with_name("families.csv")
WORDS_PACKAGE = "wamerican"
NUM_WORDS = 40_000
PRINTABLE = [chr(code) for code in range(32, 127)]
CLASS_SHARES = {"sans": 0.38, "mono": 0.17, "courier": 0.15, "receipt": 0.14, "serif": 0.08, "hand": 0.05, "display": 0.03}
STYLE_WEIGHTS = {"R": 1.0, "B": 0.8, "L": 0.7, "RC": 1.0, "BC": 0.7, "RI": 0.4}
UNWANTED_STYLES = re.compile(r"black|heavy|ultra|extra|semibold|thin|hairline|retina|medium.", re.IGNORECASE)
STYLE_MARKS = ((r"bold|demi", "B"), (r"light", "L"), (r"cond|narrow", "C"), (r"italic|oblique|slanted", "I"))


class FontEntry(TypedDict):
    """One face in `fonts.json`; `weight` is its share of all lines; `caps_only`: its small letters look like capitals."""

    file: str
    family: str
    style: str
    package: str
    version: str
    licence: str
    kind: str
    weight: float
    caps_only: bool


def collect_fonts(output: Path) -> list[FontEntry]:
    """Write the faces, fonts.json and words.txt to `output`; return the entries of fonts.json."""
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # old fonts make it warn of dates
    output.mkdir(parents=True, exist_ok=True)
    with FAMILIES_PATH.open(encoding="utf-8", newline="") as file:
        families = {(row["package"], row["family"]): row for row in csv.DictReader(file)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packages = sorted({package for package, _ in families})
        versions = unpack_packages([*packages, WORDS_PACKAGE], folder)
        (output / "words.txt").write_text("\n".join(read_words(folder / WORDS_PACKAGE)) + "\n", encoding="ascii")
        entries: list[FontEntry] = []
        outlines: set[int] = set()
        for number, package in enumerate(packages, 1):
            print(f"{number}/{len(packages)} {package}", file=sys.stderr)
            for (family, style), path in sorted(find_faces(folder / package).items()):
                row = families.get((package, family))
                if row is None or style not in row["styles"].split():
                    continue
                entry = write_face(path, output, row, style, versions[package], outlines)
                if entry is not None:
                    entries.append(entry)
    share_weights(entries)
    (output / "fonts.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return entries


def unpack_packages(packages: list[str], folder: Path) -> dict[str, str]:
    """Download `packages` and unpack each to the folder of its name; return their versions."""
    command = ["apt-get", "download", "-o", "APT::Sandbox::User=root", *packages]
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"fonts.py: apt-get could not download the font packages ({error}); run this on Debian 12, after `apt-get update`"
        ) from error
    versions = {}
    for archive in sorted(folder.glob("*.deb")):
        package, version, _ = archive.name.split("_")
        subprocess.run(["dpkg", "-x", archive, folder / package], check=True)
        versions[package] = version.replace("%3a", ":")
    return versions


def read_words(folder: Path) -> list[str]:
    """The dictionary words of ASCII letters in the unpacked package, at most NUM_WORDS, the same ones each time, sorted."""
    [dictionary] = (path for path in folder.rglob("usr/share/dict/*-english") if path.is_file())
    words = [word for word in dictionary.read_text(encoding="utf-8").split() if re.fullmatch(r"[A-Za-z]{2,16}", word)]
    return sorted(random.Random(0).sample(words, min(NUM_WORDS, len(words))))


def find_faces(folder: Path) -> dict[tuple[str, str], Path]:
    """The outline fonts under `folder` that have all printable ASCII characters, by family and style mark.

    A style mark is the weight (R regular, B bold, L light), then C if condensed, I if slanted. Where several faces have the same
    marks, the one with the shortest style name is taken: Bold rather than ExtraBold.
    """
    found: dict[tuple[str, str], list[tuple[int, str, Path]]] = defaultdict(list)
    for path in folder.rglob("*"):
        if path.suffix.lower() not in (".ttf", ".otf") or path.is_symlink():
            continue
        try:
            font = TTFont(path, lazy=True)
            characters = font.getBestCmap() or {}
        except TTLibError:
            continue
        if not all(ord(character) in characters for character in PRINTABLE) or not ("glyf" in font or "CFF " in font):
            continue
        family, style = (font["name"].getBestFamilyName() or "").strip(), font["name"].getBestSubFamilyName() or ""
        if not UNWANTED_STYLES.search(style):
            found[family, mark_style(f"{style} {path.stem}")].append((len(style), path.name, path))
    return {key: min(faces)[2] for key, faces in found.items()}


def mark_style(name: str) -> str:
    """`Bold Condensed Italic` -> `BCI`, `Light` -> `L`, `Oblique` -> `RI`."""
    marks = "".join(mark for pattern, mark in STYLE_MARKS if re.search(pattern, name, re.IGNORECASE))
    weight = next((mark for mark in marks if mark in "BL"), "R")
    return weight + "".join(mark for mark in marks if mark in "CI")


def write_face(path: Path, output: Path, row: dict[str, str], style: str, version: str, outlines: set[int]) -> FontEntry | None:
    """Cut the face at `path` down to ASCII and write it; return its entry, or None if it is broken or `outlines` has it."""
    font = TTFont(path, recalcTimestamp=False)
    try:
        drawings = {character: draw_outline(font, character) for character in PRINTABLE}
    except TTLibError as error:
        print(f"{path.name} is left out: {error}", file=sys.stderr)
        return None
    if any(len(drawings[character]) < len("[('closePath', ())]") for character in PRINTABLE[1:]):
        print(f"{path.name} is left out: it has empty glyphs", file=sys.stderr)
        return None
    fingerprint = hash(tuple(drawings[character] for character in "aegRS2580"))
    if fingerprint in outlines:
        return None
    outlines.add(fingerprint)
    num_alike = sum(drawings[character] == drawings[character.upper()] for character in "abcdefghijklmnopqrstuvwxyz")
    subset_font(font)
    name = re.sub(r"[^A-Za-z0-9]+", "", row["family"]) + f"-{style}{path.suffix.lower()}"
    font.save(output / name)
    return FontEntry(
        file=name,
        family=row["family"],
        style=style,
        package=row["package"],
        version=version,
        licence=f"/usr/share/doc/{row['package']}/copyright",
        kind=row["class"],
        weight=STYLE_WEIGHTS[style],
        caps_only=num_alike > 20,
    )


def draw_outline(font: TTFont, character: str) -> str:
    """What the pen does for the glyph of `character`, as text."""
    pen = RecordingPen()
    glyphs = font.getGlyphSet()
    glyphs[font.getBestCmap()[ord(character)]].draw(pen)
    return repr(pen.value)


def subset_font(font: TTFont) -> None:
    """Leave the outlines and metrics of printable ASCII only; hints go, since scans show none."""
    options = Options()
    options.hinting = False
    options.layout_features = []
    options.notdef_outline = False
    options.name_IDs = [1, 2]
    options.drop_tables += [
        "GSUB",
        "GPOS",
        "GDEF",
        "kern",
        "DSIG",
        "FFTM",
        "PfEd",
        "TeX ",
        "LTSH",
        "VDMX",
        "hdmx",
        "EBDT",
        "EBLC",
    ]
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=[ord(character) for character in PRINTABLE])
    subsetter.subset(font)


def share_weights(entries: list[FontEntry]) -> None:
    """Scale weights so that a family counts as the square root of its faces, and each class has its share of all lines."""
    num_faces = Counter(entry["family"] for entry in entries)
    totals: dict[str, float] = defaultdict(float)
    for entry in entries:
        entry["weight"] /= num_faces[entry["family"]] ** 0.5
        totals[entry["kind"]] += entry["weight"]
    for entry in entries:
        entry["weight"] = round(entry["weight"] * CLASS_SHARES[entry["kind"]] / totals[entry["kind"]], 6)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and collect the fonts."""
    parser = argparse.ArgumentParser(description="Collect the fonts and words of the recipe from Debian packages.")
    parser.add_argument("--output", type=Path, default=Path(".fonts"), help="folder to write (default: .fonts)")
    output = parser.parse_args(arguments).output
    entries = collect_fonts(output)
    size_bytes = sum(path.stat().st_size for path in output.iterdir())
    print(f"{output}: {len(entries)} faces, {size_bytes / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
