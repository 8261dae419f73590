"""The names that the tiny experts know: nouns unless their options say otherwise; of plain scenes every colour with
every shape, and the words that are written.

They are what ``scenes`` can show; a test compares the two.
"""

from __future__ import annotations

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "gray")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")

# fmt: off
WORDS = (
    "BAKE", "BALL", "BANK", "BELL", "BIKE", "BIRD", "BLUE", "BOAT", "BOOK", "CAFE", "CAKE", "CITY", "CLUB", "COFFEE",
    "DANCE", "DEER", "DOOR", "EXIT", "FARM", "FISH", "FREE", "GATE", "GIFT", "GOLD", "HELP", "HERE", "HOME", "HOTEL",
    "IDEA", "JAZZ", "JUICE", "KEYS", "KIWI", "LAKE", "LAMP", "MENU", "MILK", "MOON", "MUSIC", "NEWS", "NORTH", "OPEN",
    "PARK", "PIZZA", "POST", "QUEEN", "QUIZ", "RADIO", "RICE", "SALE", "SHOP", "STOP", "TAXI", "TEA", "TOUR", "TRAIN",
    "UNIT", "VIEW", "VOTE", "WEST", "WOOD", "YARD", "ZERO", "ZOO",
)
# fmt: on

#: What things and scenes look like where tags do not say it, each value once; experts are trained to tell them.
FILLS = ("solid", "striped across", "striped down", "dotted")
LEANS = ("left", "upright", "right")
OUTLINES = ("dark", "none")
#: Of two things that clearly overlap: whether the other one lies on it.
HIDDEN = ("no", "yes")
GROUNDS = ("pale", "dark", "tinted")
TEXTURES = ("plain", "sloping", "checked")


def word_tag(text: str) -> str:
    """The name of a written word. Its quotes keep the word "BLUE" apart from the colour."""
    return f'word "{text}"'


#: "red circle", "red square", ... "gray heart", 'word "BAKE"', ... 'word "ZOO"': 128 names.
VOCABULARY = (*(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES), *map(word_tag, WORDS))

#: The names of fine scenes: what a thing is, not what it looks like, and that something is written, not what.
NOUNS = (*SHAPES, "word")


def normalised(phrase: str) -> str:
    """The spelling under which a phrase is compared: case and the amount of white space do not matter."""
    return " ".join(phrase.casefold().split())
