"""What scenes are made of, and what is kept apart."""

from __future__ import annotations

from typing import Literal, get_args

#: The names of the tiny experts' vocabulary: every colour with every shape. (A test compares the two.)
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "gray")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
PLURALS = {shape: {"cross": "crosses"}.get(shape, f"{shape}s") for shape in (*SHAPES, "object")}

#: Combinations that only the split ``held-out`` has, neither drawn nor named elsewhere: each colour and each shape
#: once.
HELD_OUT = frozenset((colour, SHAPES[(3 * index + 2) % 8]) for index, colour in enumerate(COLOURS))

#: Side of an object as a share of the image's shorter side. The gaps keep the words apart.
SIZES = {"small": (0.125, 0.165), "medium": (0.22, 0.28), "large": (0.36, 0.46)}

#: What a scene's things have beside color, shape and size: ``plain`` is nothing, ``fine`` is all of the following, none
#: of which the tags tell.
Attributes = Literal["plain", "fine"]
Fill = Literal["solid", "striped across", "striped down", "dotted"]
FILLS: tuple[Fill, ...] = get_args(Fill)
Lean = Literal["left", "upright", "right"]
LEANS: tuple[Lean, ...] = get_args(Lean)
Outline = Literal["dark", "none"]
OUTLINES: tuple[Outline, ...] = get_args(Outline)
Ground = Literal["pale", "dark", "tinted"]
GROUNDS: tuple[Ground, ...] = get_args(Ground)
Texture = Literal["plain", "sloping", "checked"]
TEXTURES: tuple[Texture, ...] = get_args(Texture)
#: Colors with fills that only the split ``held-out`` has: each color once, each fill twice.
HELD_OUT_FILLS = frozenset((color, FILLS[(index + index // 4) % 4]) for index, color in enumerate(COLOURS))
#: As ``SIZES``, of fine scenes: large enough that fill, outline and lean show.
FINE_SIZES = {"small": (0.24, 0.28), "medium": (0.31, 0.36), "large": (0.40, 0.48)}
#: The tag of anything written in a fine scene.
WORD_TAG = "word"

Split = Literal["train", "validation", "test", "held-out"]
SPLITS: tuple[Split, ...] = get_args(Split)
#: Scenes are numbered; each split has a range of numbers to itself.
SPLIT_ROOM = 1_000_000_000

#: What each row of the task ``mixed`` is one of.
SingleTask = Literal["caption", "vqa", "text-vqa", "grounded-caption", "rec", "referential", "multi-choice", "dialogue"]
SINGLE_TASKS: tuple[SingleTask, ...] = get_args(SingleTask)
#: How much a caption of a fine scene tells.
Captions = Literal["varied", "dense", "regions"]
SceneTask = Literal[SingleTask, "mixed", "conversation"]
SCENE_TASKS: tuple[SceneTask, ...] = get_args(SceneTask)
#: What each scene is asked in the task ``conversation``, in any order.
TASKS_OF_CONVERSATION: tuple[SingleTask, ...] = (
    *("vqa", "vqa", "vqa", "text-vqa", "rec", "referential", "multi-choice"),
    *("caption", "grounded-caption", "dialogue"),
)

# fmt: off
WORDS = (
    "BAKE", "BALL", "BANK", "BELL", "BIKE", "BIRD", "BLUE", "BOAT", "BOOK", "CAFE", "CAKE", "CITY", "CLUB", "COFFEE",
    "DANCE", "DEER", "DOOR", "EXIT", "FARM", "FISH", "FREE", "GATE", "GIFT", "GOLD", "HELP", "HERE", "HOME", "HOTEL",
    "IDEA", "JAZZ", "JUICE", "KEYS", "KIWI", "LAKE", "LAMP", "MENU", "MILK", "MOON", "MUSIC", "NEWS", "NORTH", "OPEN",
    "PARK", "PIZZA", "POST", "QUEEN", "QUIZ", "RADIO", "RICE", "SALE", "SHOP", "STOP", "TAXI", "TEA", "TOUR", "TRAIN",
    "UNIT", "VIEW", "VOTE", "WEST", "WOOD", "YARD", "ZERO", "ZOO",
)
# fmt: on
NUMBERS = (
    *("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
#: Of plain questions, what it takes to answer them.
QuestionType = Literal[
    "count",
    "color",
    "shape",
    "size",
    "existence",
    "absent",
    "relation",
    "position",
    "text",
    "location",
    "naming",
    "side",
    "search",
    "choice",
    "extreme",
    "amount",
    "height",
    "beside",
    "place-choice",
    "word-choice",
    "sized",
]

#: What it takes to answer a question about a fine scene: the text of tags and boxes, a local look, the look of the
#: whole, text and looks.
Group = Literal["T", "L", "G", "LT"]
GROUPS: tuple[Group, ...] = get_args(Group)
#: What may be asked of fine scenes: any type of a group, or one type.
FineQuestion = Literal[
    "T",
    "L",
    "G",
    "LT",
    "T count",
    "T existence",
    "T written",
    "T relation",
    "T side",
    "T position",
    "T location",
    "T naming",
    "T absent",
    "L color",
    "L fill",
    "L lean",
    "L outline",
    "L check",
    "L presence",
    "L which",
    "L word",
    "G ground",
    "G texture",
    "LT color",
    "LT fill",
    "LT lean",
    "LT outline",
    "LT tally",
]
FINE_QUESTIONS: tuple[FineQuestion, ...] = get_args(FineQuestion)
