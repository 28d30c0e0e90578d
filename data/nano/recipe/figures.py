"""Strings made of digits: quantities, amounts, dates and times, telephone numbers, codes."""

import random
import string

from strings import sample_syllables, set_case
from vocabulary import CODE_PATTERNS, UNITS

CURRENCIES = ("RM", "RM", "RM ", "$", "$", "$ ", "USD ", "MYR ", "SGD ", "S$", "EUR ")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def sample_quantity(rng: random.Random) -> str:
    """`2`, `2 X 4.50`, `x3`, `10 PCS`, `6%`."""
    number = str(rng.randint(1, 12)) if rng.random() < 0.8 else str(rng.randint(1, 9999))
    price = f"{rng.uniform(0.1, 99):.2f}"
    return rng.choice(
        (
            number,
            number,
            f"{number}{rng.choice((' X ', ' x ', 'X', 'x', ' @ ', '@', ' * ', 'X ', ' @RM'))}{price}",
            f"{rng.choice('xX')}{number}",
            f"{number}{rng.choice(('', ' '))}{set_case(rng.choice(UNITS), rng)}",
            f"{rng.choice((0, 5, 6, 6, 10, 12.5, 20, 50))}{rng.choice(('%', ' %', '.00%'))}",
            f"{number}.00",
            f"{rng.randint(0, 30)}.{rng.randint(0, 999):03}",
        )
    )


def sample_amount(rng: random.Random) -> str:
    """Prices: `12.50`, `RM 9.00`, `$1,234.50`, `-0.02`, `2 X 4.50`."""
    if rng.random() < 0.12:
        return sample_quantity(rng)
    value = rng.choices(
        (rng.uniform(0, 10), rng.uniform(0, 100), rng.uniform(0, 1000), rng.uniform(0, 20000), 0.0), (38, 38, 12, 6, 6)
    )[0]
    if rng.random() < 0.4:
        value = round(value, 1)
    text = f"{value:,.2f}" if rng.random() < 0.8 else f"{value:.2f}"
    share = rng.random()
    if share < 0.30:
        text = rng.choice(CURRENCIES) + text
    elif share < 0.36:
        text = rng.choice(("-", "- ", "-RM", "(", "+", "*")) + text
        text += ")" if text[0] == "(" else ""
    elif share < 0.46:
        text += rng.choice(
            (" SR", " S", "SR", " ZRL", " T", "*", " *", " Z", "-", " A", " GST", "/", " CR", "%", "T", " RM", " E", "/KG")
        )
    elif share < 0.50:
        text = text.replace(".", rng.choice((",", " .", ". ")))
    elif share < 0.53:
        text = text.split(".")[0]
    return text


def sample_date_or_time(rng: random.Random) -> str:
    """Dates, times, or both."""
    day, month, year = rng.randint(1, 31), rng.randint(1, 12), rng.randint(1990, 2030)
    name = set_case(MONTHS[month - 1], rng)
    mark = rng.choice("//--. ")
    date = rng.choice(
        (
            f"{day:02}{mark}{month:02}{mark}{year}",
            f"{day:02}{mark}{month:02}{mark}{year % 100:02}",
            f"{year}{mark}{month:02}{mark}{day:02}",
            f"{day}/{month}/{year}",
            f"{day:02}{rng.choice(' -/')}{name}{rng.choice(' -/')}{year}",
            f"{name} {day}, {year}",
            f"{set_case(rng.choice(DAYS), rng)}{rng.choice((' ', ', '))}{day:02} {name} {year % 100:02}",
            f"{day:02}{month:02}{year}",
        )
    )
    hour, minute, second = rng.randint(0, 23), rng.randint(0, 59), rng.randint(0, 59)
    half = rng.choice(("AM", "PM", " AM", " PM", "am", "pm", " a.m."))
    time = rng.choice(
        (
            f"{hour:02}:{minute:02}",
            f"{hour:02}:{minute:02}:{second:02}",
            f"{hour % 12 + 1}:{minute:02}{half}",
            f"{hour:02}{minute:02}HRS",
            f"{hour % 12 + 1:02}:{minute:02}:{second:02}{half}",
        )
    )
    return rng.choices((date, time, f"{date}{rng.choice((' ', ' - ', ', '))}{time}"), (5, 4, 2))[0]


def sample_number(rng: random.Random) -> str:
    """2 to 8 digits."""
    return "".join(rng.choices(string.digits, k=rng.choice((2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8))))


def sample_phone(rng: random.Random) -> str:
    """Telephone and fax numbers."""
    digits = "".join(rng.choices(string.digits, k=8))
    prefix = rng.choice(("03", "04", "05", "06", "07", "09", "012", "016", "019", "1-800", "+603", "+60", "(03)", "603", "082"))
    number = rng.choice(
        (digits, f"{digits[:4]} {digits[4:]}", f"{digits[:4]}-{digits[4:]}", f"{digits[:3]} {digits[3:7]}", digits[:7])
    )
    text = f"{prefix}{rng.choice(('-', '-', ' ', '', ' - '))}{number}"
    if rng.random() < 0.45:
        text = (
            set_case(rng.choice(("TEL", "FAX", "PHONE", "H/P", "TEL NO", "HOTLINE", "T")), rng)
            + rng.choice((":", ": ", " : ", ".", " ", " :", ".: "))
            + text
        )
    return text


def sample_code(rng: random.Random) -> str:
    """Registration, tax, invoice, item and card numbers, web and mail addresses."""
    pattern = rng.choice(CODE_PATTERNS)
    if rng.random() < 0.07:
        name, host = sample_syllables(rng).lower(), sample_syllables(rng).lower()
        end = rng.choice((".com", ".com.my", ".my", ".net", ".org"))
        return rng.choice(
            (f"www.{name}{end}", f"{name}@{host}{end}", f"http://{name}{end}", f"{name}{end}", f"facebook.com/{name}")
        )
    text = "".join(
        rng.choice(string.digits) if mark == "#" else rng.choice(string.ascii_uppercase) if mark == "@" else mark
        for mark in pattern
    )
    return text.lower() if rng.random() < 0.08 else text
