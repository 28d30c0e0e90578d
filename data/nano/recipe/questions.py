"""The questions of the recipe, and which answer each asks for."""

import random

READ_AS_PRINTED = "Read the text in the image."
READ_IN_CAPITALS = "Read the text in the image, in capital letters."
READ_NUMBER = "Read the number in the image."
OTHER_QUESTIONS = ("What does the image say?", "Transcribe the text.", "What is written here?")
ALL_QUESTIONS = (READ_AS_PRINTED, READ_IN_CAPITALS, READ_NUMBER, *OTHER_QUESTIONS)

SHARE_AS_PRINTED = 0.45
SHARE_IN_CAPITALS = 0.45
NUMBER_SHARE = 0.25  # of strings of digits only, before the shares above


def choose_question(text: str, rng: random.Random) -> tuple[str, str]:
    """A question about an image of `text`, and its answer."""
    if text.isdecimal() and rng.random() < NUMBER_SHARE:
        return READ_NUMBER, text
    share = rng.random()
    if share < SHARE_AS_PRINTED:
        return READ_AS_PRINTED, text
    if share < SHARE_AS_PRINTED + SHARE_IN_CAPITALS:
        return READ_IN_CAPITALS, text.upper()
    return rng.choice(OTHER_QUESTIONS), text
