"""Changes of a text as people's texts arrive: in capitals, cut, mistyped, with a greeting, scraped off a page.

A change is a pure function of a text and a seed: the same two give the same text in every process. What it promises is
in its docstring. A text that a change does not concern (no contraction to spread, one word alone to cut) comes back as
it is. `CHANGES` holds them by name; `changed` also joins texts, which takes two of them.
"""

from __future__ import annotations

import html
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial

Change = Callable[[str, int], str]

FINAL = ".!?…,;:"
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
SPACES = (" ", "   ", "\n", "\n\n", "\t", "\n   ")
GREETINGS = ("hi there,", "Hello!", "hey", "Hi,", "good morning,", "Hey, quick one:", "ok so", "Hello everyone,")
TAILS = ("thanks", "pls help", "thx in advance", "thank you!", "please", "any ideas?", "cheers", "sorry for asking")
EMOJI = ("😀", "😂😂", "👍", "❤️", "🙏", "😡", "🤔", "🎉🎉🎉")
NOT = "is|are|was|were|do|does|did|have|has|had|would|could|should|must|need"
APOSTROPHE = r"['\u2019]"
# Of 's and 'd, only what can be nothing but a verb: "Anna's" may be a possessive, "he'd" had or would.
SPREAD = (
    (rf"\b(can){APOSTROPHE}t\b", r"\1not"),
    (rf"\b(w)on{APOSTROPHE}t\b", r"\1ill not"),
    (rf"\b(sha)n{APOSTROPHE}t\b", r"\1ll not"),
    (rf"\b({NOT})n{APOSTROPHE}t\b", r"\1 not"),
    (rf"\b(I){APOSTROPHE}m\b", r"\1 am"),
    (rf"\b(you|we|they){APOSTROPHE}re\b", r"\1 are"),
    (rf"\b(I|you|we|they|he|she|it|that|there|who){APOSTROPHE}ll\b", r"\1 will"),
    (rf"\b(I|you|we|they|could|should|would|might){APOSTROPHE}ve\b", r"\1 have"),
    (rf"\b(it|that|he|she|there|here|what|who|where|how){APOSTROPHE}s\b", r"\1 is"),
    (rf"\b(let){APOSTROPHE}s\b", r"\1 us"),
)
JOINED = (
    (r"\b(can) ?not\b", r"\1't"),
    (r"\b(w)ill not\b", r"\1on't"),
    (rf"\b({NOT}) not\b", r"\1n't"),
    (r"\b(I) am\b", r"\1'm"),
    (r"\b(you|we|they) are\b", r"\1're"),
    (r"\b(I|you|we|they|he|she|it) will\b", r"\1'll"),
    (r"\b(I|you|we|they) have\b", r"\1've"),
    (r"\b(it|that|he|she|there|what) is\b", r"\1's"),
)


def draw(text: str, seed: int) -> random.Random:
    """The source of a change's choices: another one for each text, so that one seed does not choose alike for all."""
    return random.Random(f"{seed} {text}")


# -- letters and signs ------------------------------------------------------------------------------------------------


def lower(text: str, seed: int) -> str:
    """Small letters throughout."""
    return text.lower()


def upper(text: str, seed: int) -> str:
    """Capitals throughout."""
    return text.upper()


def small_start(text: str, seed: int) -> str:
    """The first letter without its capital; nothing else changes."""
    place = next((i for i, letter in enumerate(text) if letter.isalpha()), len(text))
    return text[:place] + text[place : place + 1].lower() + text[place + 1 :]


def no_final_punctuation(text: str, seed: int) -> str:
    """Without the signs that end a sentence, at the end of the text."""
    return text.rstrip().rstrip(FINAL) or text


def no_punctuation(text: str, seed: int) -> str:
    """No sign of punctuation (Unicode category P) at all: dashes and slashes become spaces, others go."""
    kinds = {letter: unicodedata.category(letter) for letter in text}
    spaced = "".join(" " if letter == "/" or kinds[letter] == "Pd" else letter for letter in text)
    bare = "".join(letter for letter in spaced if not kinds[letter].startswith("P"))
    return " ".join(bare.split()) or text


def curly_quotes(text: str, seed: int) -> str:
    """No straight quote: those behind a space, a bracket or nothing open, the others close."""
    for straight, opening, closing in (('"', "\u201c", "\u201d"), ("'", "\u2018", "\u2019")):
        text = re.sub(rf"(^|(?<=[\s(\[\u201c])){straight}", opening, text).replace(straight, closing)
    return text


def neighbours(letter: str) -> str:
    """The letters whose keys touch a letter's on a QWERTY keyboard; none for other signs."""
    for number, row in enumerate(KEYBOARD):
        place = row.find(letter)
        if place < 0:
            continue
        found = [row[i] for i in (place - 1, place + 1) if 0 <= i < len(row)]
        for other, steps in ((number - 1, (0, 1)), (number + 1, (-1, 0))):  # each row stands further right
            if 0 <= other < len(KEYBOARD):
                found += [KEYBOARD[other][place + i] for i in steps if 0 <= place + i < len(KEYBOARD[other])]
        return "".join(found)
    return ""


def mistyped(text: str, seed: int, every: int) -> str:
    """Typing errors, one in so many letters and at least one: swapped, missing, doubled, or of the key beside it."""
    source, places = draw(text, seed), [i for i, letter in enumerate(text) if letter.isalpha()]
    if not places:
        return text
    while True:  # two errors may undo each other
        letters = list(text)
        for place in sorted(source.sample(places, max(1, round(len(places) / every))), reverse=True):
            _mistype(letters, place, source)
        found = "".join(letters)
        if found != text and found.strip():
            return found


def _mistype(letters: list[str], place: int, source: random.Random) -> None:
    """One error in a list of letters, of which those behind `place` may have been mistyped already."""
    letter, following = letters[place], letters[place + 1] if place + 1 < len(letters) else ""
    beside = neighbours(letter.lower())
    ways = ["doubled", "missing"]
    if len(following) == 1 and following.isalpha() and following != letter:
        ways.append("swapped")
    if beside:
        ways.append("beside")
    way = source.choice(ways)
    if way == "swapped":
        letters[place], letters[place + 1] = following, letter
    elif way == "beside":
        key = source.choice(beside)
        letters[place] = key.upper() if letter.isupper() else key
    else:
        letters[place] = 2 * letter if way == "doubled" else ""


# -- words ------------------------------------------------------------------------------------------------------------


def _rewritten(text: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    return text


def spread_contractions(text: str, seed: int) -> str:
    """Two words for each contraction that can be nothing else: "don't" is "do not", "Anna's" stays."""
    return _rewritten(text, SPREAD)


def joined_contractions(text: str, seed: int) -> str:
    """A contraction for each two words that have a usual one."""
    return _rewritten(text, JOINED)


def first_half(text: str, seed: int) -> str:
    """The first half of its words; of an odd number, the middle one too."""
    words = text.split()
    return " ".join(words[: (len(words) + 1) // 2])


def first_five(text: str, seed: int) -> str:
    """Its first five words."""
    return " ".join(text.split()[:5])


def twice(text: str, seed: int) -> str:
    """The text two times in a row: as long again, and nothing new."""
    return f"{text} {text}"


# -- around it --------------------------------------------------------------------------------------------------------


def spaces_in_front(text: str, seed: int) -> str:
    """Spaces or new lines in front."""
    return draw(text, seed).choice(SPACES) + text


def doubled_spaces(text: str, seed: int) -> str:
    """Two spaces for each; the words stay."""
    return text.replace(" ", "  ")


def greeting(text: str, seed: int) -> str:
    """A greeting or a filler in front; the text itself stays."""
    return f"{draw(text, seed).choice(GREETINGS)} {text}"


def tail(text: str, seed: int) -> str:
    """Thanks or a plea behind; the text itself stays."""
    return f"{text} {draw(text, seed).choice(TAILS)}"


def emoji(text: str, seed: int) -> str:
    """Emoji behind; the text itself stays."""
    return f"{text} {draw(text, seed).choice(EMOJI)}"


def exclamation(text: str, seed: int) -> str:
    """Three exclamation marks for whatever signs ended it."""
    return no_final_punctuation(text, seed) + "!!!"


def quoted(text: str, seed: int) -> str:
    """In double quotes."""
    return f'"{text}"'


# -- scraped ----------------------------------------------------------------------------------------------------------


def html_entities(text: str, seed: int) -> str:
    """The signs that HTML escapes, as a page has them; `html.unescape` gives the text back."""
    return html.escape(text).replace("&#x27;", "&#39;")


def line_breaks(text: str, seed: int) -> str:
    """`<br />` twice between sentences, or once behind the only one."""
    found = re.sub(r"(?<=[.!?])\s+(?=\S)", "<br /><br />", text)
    return found if found != text else f"{text}<br />"


CHANGES: dict[str, Change] = {
    "lower case": lower,
    "upper case": upper,
    "first letter small": small_start,
    "no final punctuation": no_final_punctuation,
    "no punctuation": no_punctuation,
    "typing errors, 1 in 15 letters": partial(mistyped, every=15),
    "typing errors, 1 in 8 letters": partial(mistyped, every=8),
    "contractions spread": spread_contractions,
    "contractions joined": joined_contractions,
    "curly quotes": curly_quotes,
    "HTML entities": html_entities,
    "<br /> between sentences": line_breaks,
    "spaces in front": spaces_in_front,
    "doubled spaces": doubled_spaces,
    "a greeting in front": greeting,
    "a tail behind": tail,
    "emoji behind": emoji,
    "!!! behind": exclamation,
    "quoted": quoted,
    "twice in a row": twice,
    "first half of its words": first_half,
    "first five words": first_five,
}
WITH_THE_NEXT = "with another text of its task"


def changed(texts: Sequence[str], seed: int) -> Iterator[tuple[str, list[str]]]:
    """Texts of one task under every change, by name; the last joins each with the next, round in a circle."""
    for name, change in CHANGES.items():
        yield name, [change(text, seed) for text in texts]
    yield WITH_THE_NEXT, [f"{text} {texts[(place + 1) % len(texts)]}" for place, text in enumerate(texts)]
