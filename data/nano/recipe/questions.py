"""The questions of the recipe, and which answer each asks for.

Six of them are one token each, and asked most of the time. Now and then they are written a little differently, or something
else is asked, worded anew each time, so that the model reads whatever it is asked.
"""

import random

READ_AS_PRINTED = "Read the text in the image."
READ_IN_CAPITALS = "Read the text in the image, in capital letters."
READ_NUMBER = "Read the number in the image."
OTHER_QUESTIONS = ("What does the image say?", "Transcribe the text.", "What is written here?")
ALL_QUESTIONS = (READ_AS_PRINTED, READ_IN_CAPITALS, READ_NUMBER, *OTHER_QUESTIONS)

SHARE_AS_PRINTED = 0.40
SHARE_IN_CAPITALS = 0.40
SHARE_OTHER = 0.08
NUMBER_SHARE = 0.25  # of strings of digits only, before the shares above
SHARE_ALMOST = 0.08  # of the questions above

SHARE_WORDED_IN_CAPITALS = 0.3  # of the questions that are worded anew
OPENINGS = (
    "", "", "", "", "Please ", "Now ", "Can you ", "Could you please ", "I want you to ", "You are an OCR engine. ", "OCR: ",
)  # fmt: skip
VERBS = (
    "read", "transcribe", "copy", "extract", "recognise", "recognize", "write down", "type", "print", "give me", "tell me",
    "return", "output", "show", "perform OCR on", "convert to text", "spell out",
)  # fmt: skip
OBJECTS = (
    "the text", "the text", "the line", "the words", "the writing", "all text", "this", "this line", "this text",
    "the printed text", "the characters", "the content", "what is written", "what it says", "what you see", "the label",
)  # fmt: skip
PLACES = (
    "", "", "", " in the image", " in this image", " of the image", " in the picture", " in the photo", " here", " shown",
    " on the receipt", " on this paper", " from the scan", " exactly", " only",
)  # fmt: skip
IN_CAPITALS = (
    " in capital letters", ", in capital letters", " in capitals", ", in capitals", " in upper case", " in uppercase",
    " IN CAPITALS", ", all caps", ", in block letters", " (capitals)",
)  # fmt: skip
ASKED = (
    "What is this", "What does it say", "What does this say", "What is in the image", "What can you read", "What is the text",
    "Which words are these", "What do you see", "What text is in the image", "Text", "OCR", "Describe the image",
    "Describe the picture", "Caption this image", "And this", "And here",
)  # fmt: skip
IN_OTHER_LANGUAGES = (
    "读出图中的文字。", "请识别图片中的文字。", "图片里写的是什么", "Baca teks dalam gambar ini.", "Lies den Text im Bild.",
    "Lis le texte de l'image.", "Lee el texto de la imagen.",
)  # fmt: skip
ENDS = (".", ".", ".", "", "", "", ":", "!", "?", " .")


def choose_question(text: str, rng: random.Random) -> tuple[str, str]:
    """A question about an image of `text`, and its answer."""
    share = rng.random()
    if text.isdecimal() and rng.random() < NUMBER_SHARE:
        question, answer = READ_NUMBER, text
    elif share < SHARE_AS_PRINTED:
        question, answer = READ_AS_PRINTED, text
    elif share < SHARE_AS_PRINTED + SHARE_IN_CAPITALS:
        question, answer = READ_IN_CAPITALS, text.upper()
    elif share < SHARE_AS_PRINTED + SHARE_IN_CAPITALS + SHARE_OTHER:
        question, answer = rng.choice(OTHER_QUESTIONS), text
    elif rng.random() < SHARE_WORDED_IN_CAPITALS:
        return word_request(rng, in_capitals=True), text.upper()
    else:
        return word_question(rng), text
    return (almost(question, rng) if rng.random() < SHARE_ALMOST else question), answer


def almost(question: str, rng: random.Random) -> str:
    """A question with another end, or in other letters."""
    question = question[:-1] + rng.choice(ENDS)
    return rng.choice((question, question, question.lower(), question.upper()))


def word_question(rng: random.Random) -> str:
    """Some wording of a question for the text as it is printed."""
    share = rng.random()
    if share < 0.08:
        return rng.choice(IN_OTHER_LANGUAGES)
    if share < 0.25:
        question = rng.choice(ASKED) + rng.choice(("?", "?", "", ".", ":"))
        return question if rng.random() < 0.7 else question.lower()
    return word_request(rng, in_capitals=False)


def word_request(rng: random.Random, in_capitals: bool) -> str:
    """`Please transcribe the line in the photo, in capitals.`"""
    wanted = rng.choice(VERBS) + " " + rng.choice(OBJECTS) + rng.choice(PLACES)
    opening = rng.choice(OPENINGS)
    if not opening or opening.endswith((". ", ": ")):
        wanted = wanted[0].upper() + wanted[1:]
    request = opening + wanted + (rng.choice(IN_CAPITALS) if in_capitals else "") + rng.choice(ENDS)
    return request if rng.random() < 0.8 else request.lower()
