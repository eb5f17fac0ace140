"""Labels and the values that may stand beside them on forms, receipts and tables."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from erase.synthetic.words import CATEGORIES, CITIES, FACTS, GOODS, LABELS, NAMES

ValueKind = Literal["price", "whole", "percent", "word", "code", "date", "time"]

_WORDS = {
    "name": NAMES,
    "city": CITIES,
    "item": GOODS,
    "guest": NAMES,
    "member": NAMES,
    "account": NAMES,
    "zone": CATEGORIES,
}
_PRICES = (
    "total tax price cost sum net fee bill cash change balance amount subtotal deposit paid".split()  # noqa: SIM905
)
_PERCENTS = ("discount", "rate", "tip")
_CODES = ("code", "gate", "seat", "flight", "ticket", "serial", "model", "version", "class", "batch")
_DATES = ("date", "due")
_OTHERS = (*_WORDS, *_PRICES, *_PERCENTS, *_CODES, *_DATES, "time")
_WHOLES = tuple(label for label in LABELS if label not in _OTHERS)

_LABELS: dict[ValueKind, tuple[str, ...]] = {
    "word": tuple(_WORDS),
    "price": tuple(_PRICES),
    "percent": _PERCENTS,
    "code": _CODES,
    "date": _DATES,
    "time": ("time",),
    "whole": _WHOLES,
}
_SHARES: tuple[ValueKind, ...] = (
    *("word",) * 5,
    *("whole",) * 6,
    *("price",) * 5,
    *("code",) * 4,
    "percent",
    "date",
    "time",
)
_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"
_DIGITS = "23456789"
ROW_NAMES = {"name": NAMES, "city": CITIES, "item": GOODS, "group": CATEGORIES}
COLUMNS = (*FACTS, "price", "weight", "height", "speed", "score", "level", "cost", "fee", "tax", "width", "volume")


@dataclass(frozen=True)
class Entry:
    """A label and its value as they are answered: lower case, but capitals in codes."""

    label: str
    value: str
    kind: ValueKind


def entries(rng: Random, count: int) -> list[Entry]:
    """At most `count` entries with different labels and different values."""
    made: dict[str, Entry] = {}
    values: list[str] = []
    for _ in range(3 * count + 8):
        kind = rng.choice(_SHARES)
        label = rng.choice(_LABELS[kind])
        value = rng.choice(_WORDS[label]) if kind == "word" else value_of(kind, rng)
        if len(made) < count and label not in made and value not in values:
            made[label] = Entry(label, value, kind)
            values.append(value)
    return list(made.values())


def value_of(kind: ValueKind, rng: Random) -> str:
    """A random value of any kind but `word`."""
    if kind == "price":
        return money(cents(rng))
    if kind == "whole":
        digits = rng.randint(2, 4)
        return str(rng.randrange(10 ** (digits - 1), 10**digits))
    if kind == "percent":
        return f"{rng.randint(1, 99)}%"
    if kind == "time":
        return f"{rng.randint(1, 23)}:{rng.randrange(60):02}"
    if kind == "date":
        month, day = rng.randint(1, 12), rng.randint(1, 28)
        return f"{rng.randint(2001, 2029)}-{month:02}-{day:02}" if rng.random() < 0.3 else f"{month:02}/{day:02}"
    return code(rng)


def code(rng: Random) -> str:
    """Capitals and digits, such as K7X2 or B14; none that are easily taken for one another."""
    pattern = rng.choice(("A0", "A00", "AA0", "A0A0", "AA00", "A000", "AAA0"))
    return "".join(rng.choice(_LETTERS if place == "A" else _DIGITS) for place in pattern)


def cents(rng: Random) -> int:
    """A price: 1 to 99 units of money, mostly small, not always round."""
    whole = rng.randint(1, 9) if rng.random() < 0.5 else rng.randint(10, 99)
    return 100 * whole + rng.choice((0, 5, rng.randint(0, 9))) + 10 * rng.randint(0, 9)


def money(amount: int) -> str:
    return f"{amount // 100}.{amount % 100:02}"
