"""Questions that are asked of every image of a folder, in English and Chinese, so that nobody has to word them."""

from typing import Literal

Task = Literal["caption", "ocr", "count"]
Language = Literal["en", "zh"]

_QUESTIONS: dict[tuple[Task, Language], str] = {
    ("caption", "en"): "Describe this image in one or two sentences: what it shows, what happens, and where.",
    ("caption", "zh"): "请用一两句话描述这张图片：画面里有什么，在发生什么，在什么地方。",
    ("ocr", "en"): "Write down all text in this image exactly as it stands there, line by line, and nothing else.",
    ("ocr", "zh"): "请逐行写出图片中的所有文字，与原文完全一致，不要添加任何其他内容。",
    ("count", "en"): "How many {subject} are there in this image? Answer with the number only.",
    ("count", "zh"): "图片中有多少{subject}？请只回答数字。",
}
_SUBJECTS: dict[Language, str] = {"en": "objects", "zh": "个物体"}


def find_question(task: Task, language: Language, subject: str | None = None) -> str:
    """What to ask about each image.

    Args:
        task: what the answers are for.
        language: of question and answer.
        subject: what to count (in Chinese with its measure word: `只羊`); None: objects of any kind. Read by `count` alone.
    """
    return _QUESTIONS[task, language].format(subject=subject or _SUBJECTS[language])
