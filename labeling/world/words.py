"""Nouns that agree: articles, plurals, adjectives and numbers in Spanish and in English."""

import re
from dataclasses import dataclass

SPANISH_NUMBERS = [
    "cero",
    "uno",
    "dos",
    "tres",
    "cuatro",
    "cinco",
    "seis",
    "siete",
    "ocho",
    "nueve",
    "diez",
    "once",
    "doce",
    "trece",
    "catorce",
    "quince",
    "dieciséis",
    "diecisiete",
    "dieciocho",
    "diecinueve",
    "veinte",
    "veintiuno",
    "veintidós",
    "veintitrés",
    "veinticuatro",
    "veinticinco",
    "veintiséis",
    "veintisiete",
    "veintiocho",
    "veintinueve",
    "treinta",
]
ENGLISH_NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
    "twenty-one",
    "twenty-two",
    "twenty-three",
    "twenty-four",
    "twenty-five",
    "twenty-six",
    "twenty-seven",
    "twenty-eight",
    "twenty-nine",
    "thirty",
]
LARGEST = 30  # the town counts no further, so that a small model can learn every sum in it

_SPANISH_ARTICLES = {"ms": ("el", "un"), "fs": ("la", "una"), "mp": ("los", "unos"), "fp": ("las", "unas")}


@dataclass(frozen=True)
class Noun:
    """A Spanish noun. In a production: {g} bare, {g.el} with its article, {g[caro]} an adjective that agrees."""

    text: str
    form: str = "ms"  # m or f, s or p

    def __str__(self) -> str:
        return self.text

    @property
    def el(self) -> str:
        return f"{_SPANISH_ARTICLES[self.form][0]} {self.text}"

    @property
    def un(self) -> str:
        return f"{_SPANISH_ARTICLES[self.form][1]} {self.text}"

    @property
    def de(self) -> str:
        """The noun after "de", which swallows the article "el"."""
        return f"del {self.text}" if self.form == "ms" else f"de {self.el}"

    @property
    def a(self) -> str:
        return f"al {self.text}" if self.form == "ms" else f"a {self.el}"

    @property
    def lo(self) -> str:
        """The pronoun that stands for it: lo, la, los, las."""
        return {"ms": "lo", "fs": "la", "mp": "los", "fp": "las"}[self.form]

    def __getitem__(self, word: str) -> str:
        """An adjective in -o made to agree, or "singular|plural" of a verb."""
        if "|" in word:
            return word.split("|")[self.form[1] == "p"]
        stem = word[:-1] + ("a" if self.form[0] == "f" else "o")
        return stem + ("s" if self.form[1] == "p" else "")


@dataclass(frozen=True)
class Thing:
    """An English noun. In a production: {g} bare, {g.the}, {g.a}, {g[is|are]} a verb that agrees."""

    text: str
    plural: bool = False

    def __str__(self) -> str:
        return self.text

    @property
    def the(self) -> str:
        return f"the {self.text}"

    @property
    def a(self) -> str:
        return f"{'an' if self.text[0] in 'aeiou' else 'a'} {self.text}"

    @property
    def it(self) -> str:
        return "them" if self.plural else "it"

    def __getitem__(self, word: str) -> str:
        return word.split("|")[self.plural]


def number(n: int, language: str) -> str:
    """7 -> "siete" or "seven"; raises IndexError above thirty."""
    return (SPANISH_NUMBERS if language == "es" else ENGLISH_NUMBERS)[n]


def coins(n: int, language: str) -> str:
    """21 -> "veintiuna monedas" or "twenty-one coins"."""
    if language == "en":
        return f"{number(n, 'en')} coin{'' if n == 1 else 's'}"
    word = number(n, "es")
    word = word[:-1] + "a" if word.endswith("uno") else word
    return f"{word} moneda{'' if n == 1 else 's'}"


def sentence_case(text: str) -> str:
    """Capitals where a sentence begins, also after an opening mark or a dash; Spanish "de el" becomes "del"."""
    text = text.replace(" de el ", " del ").replace(" a el ", " al ")
    return re.sub(
        r"(?:^|(?<=[.!?…]\s)|(?<=\n)|(?<=—))([¿¡«\"—]*)([^\W\d_])",
        lambda found: found.group(1) + found.group(2).upper(),
        text,
    )
