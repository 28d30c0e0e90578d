"""Writes `caption_figures.json`: what pycocoevalcap 1.2 gives for texts that are words with one space between them.

It is kept as a file, since the package is 104 MB of Java and word lists and asks for pycocotools. To make it again:

    pip install --no-deps pycocoevalcap==1.2
    python tests/yivl_core/evaluation/metrics/caption_figures.py
"""

import json
import random
from importlib.metadata import version
from pathlib import Path

HAND_MADE = [  # answer, references
    ("a man rides a horse", ["a man rides a horse"]),
    ("a man rides a horse", ["a man is riding a horse", "a person on a brown horse", "man rides horse"]),
    ("a man is riding", ["a man rides a horse", "somebody is riding"]),
    ("horse a rides man a", ["a man rides a horse"]),
    ("the the the the", ["the cat on the mat"]),
    ("the cat on the mat the cat on the mat", ["the cat on the mat"]),
    ("cat", ["the cat on the mat"]),
    ("the cat on the mat", ["cat"]),
    ("cat", ["cat"]),
    ("dog", ["cat"]),
    ("", ["the cat on the mat"]),
    ("the cat", [""]),
    ("", [""]),
    ("the cat", ["", "the cat"]),
    ("", ["", "the cat"]),
    ("一 只 狗 在 草 地 上 跑", ["一 只 狗 在 草 地 上 奔 跑", "草 地 上 有 一 只 狗"]),
    ("一 只 猫", ["一 只 狗"]),
    ("狗 iphone 15", ["狗 和 iphone 15 在 一 起"]),
    ("a 🐶 on the 🛋", ["a 🐶 on the 🛏", "🐶 🛋"]),
    ("🐶 🐶 🐶", ["🐶"]),
    ("two dogs play in the snow", ["two dogs are playing in the snow", "dogs play in snow", "two dogs play in the snow"]),
    ("red bus on a street in london at night", ["a red bus drives down a street in london at night"]),
]

_WORDS = [
    "a",
    "the",
    "man",
    "dog",
    "horse",
    "rides",
    "runs",
    "on",
    "in",
    "red",
    "big",
    "hat",
    "狗",
    "跑",
    "🐶",
    "park",
    "car",
    "is",
]


def main() -> None:
    draw = random.Random(20)

    def text() -> str:
        return " ".join(draw.choices(_WORDS, weights=range(len(_WORDS), 0, -1), k=draw.randint(1, 14)))

    drawn = []
    for _ in range(300):
        references = [text() for _ in range(draw.randint(1, 5))]
        answer = (
            text() if draw.random() < 0.6 else " ".join(word for word in draw.choice(references).split() if draw.random() < 0.8)
        )
        drawn.append((answer, references))
    corpora = {"hand_made": HAND_MADE, "one": HAND_MADE[:1], "two": HAND_MADE[:2], "drawn": drawn}
    parts = [f"{json.dumps(name)}: [\n{_lines(rows)}\n]" for name, rows in corpora.items()]
    figures = "{\n" + ",\n".join(['"pycocoevalcap": ' + json.dumps(version("pycocoevalcap")), *parts]) + "\n}\n"
    Path(__file__).with_suffix(".json").write_text(figures, encoding="utf-8")


def _lines(rows: list[tuple[str, list[str]]]) -> str:
    return ",\n".join(json.dumps(row, ensure_ascii=False) for row in _figures(rows))


def _figures(rows: list[tuple[str, list[str]]]) -> list[dict[str, object]]:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references = {index: row[1] for index, row in enumerate(rows)}
    answers = {index: [row[0]] for index, row in enumerate(rows)}
    cider, rouge = (metric.compute_score(references, answers)[1].tolist() for metric in (Cider(), Rouge()))
    return [
        {"answer": answer, "references": right, "cider_d": cider[index], "rouge_l": rouge[index]}
        for index, (answer, right) in enumerate(rows)
    ]


if __name__ == "__main__":
    main()
