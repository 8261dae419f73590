"""The vocabulary ``words``: what the built-in word tokenizer knows as one token each.

They are the words of the embedded scenes and of the paper's templates. The order is part of every model that was
trained with them: append a list, and change none (a test compares). No torch.
"""

from __future__ import annotations

# fmt: off
#: As they are written; a capital makes another word.
WORDS = (
    "Analyze", "Answer", "BAKE", "BALL", "BANK", "BELL", "BIKE", "BIRD", "BLUE", "BOAT", "BOOK", "Based", "Briefly",
    "CAFE", "CAKE", "CITY", "CLUB", "COFFEE", "Can", "Confirm", "Consider", "Could", "Create", "DANCE", "DEER",
    "DOOR", "Describe", "EXIT", "Examine", "Explain", "FARM", "FISH", "FREE", "Focus", "For", "GATE", "GIFT", "GOLD",
    "Given", "HELP", "HERE", "HOME", "HOTEL", "How", "IDEA", "Identify", "In", "Is", "JAZZ", "JUICE", "KEYS", "KIWI",
    "LAKE", "LAMP", "Locate", "Look", "MENU", "MILK", "MOON", "MUSIC", "NEWS", "NORTH", "No", "None", "Not", "OPEN",
    "Options", "PARK", "PIZZA", "POST", "Please", "Provide", "QUEEN", "QUIZ", "Question", "RADIO", "RICE", "Refer",
    "Regarding", "Respond", "SALE", "SHOP", "STOP", "Search", "Summarize", "TAXI", "TEA", "TOUR", "TRAIN", "There",
    "UNIT", "Use", "VIEW", "VOTE", "WEST", "WOOD", "What", "Where", "Which", "With", "Write", "YARD", "Yes", "Your",
    "ZERO", "ZOO", "a", "above", "aid", "all", "among", "an", "and", "answer", "are", "area", "as", "at", "audiences",
    "below", "big", "blue", "bottom", "bounding", "box", "brief", "by", "can", "caption", "center", "choices",
    "choose", "circle", "circles", "clear", "color", "concise", "content", "coordinate", "coordinates", "could",
    "cross", "crosses", "cyan", "data", "depiction", "depicts", "describe", "describes", "description", "descriptive",
    "details", "diamond", "diamonds", "drawing", "eight", "features", "few", "find", "first", "five", "focusing",
    "following", "for", "found", "four", "from", "give", "given", "gray", "green", "have", "heart", "hearts", "help",
    "here", "highlighted", "identified", "if", "image", "in", "indicated", "information", "is", "it", "its",
    "keeping", "key", "large", "left", "leftmost", "letter", "location", "lowest", "manner", "many", "marked", "me",
    "medium", "minimalist", "most", "no", "object", "objects", "observe", "of", "offer", "on", "one", "options", "or",
    "orange", "other", "perceive", "photo", "picture", "please", "position", "possible", "presence", "presented",
    "provide", "provided", "purple", "question", "red", "respond", "response", "right", "rightmost", "ring", "rings",
    "same", "see", "select", "seven", "shape", "short", "shown", "shows", "simple", "six", "small", "spatial",
    "specific", "specified", "square", "squares", "star", "stars", "straightforward", "succinctly", "suitable",
    "target", "tell", "text", "textual", "that", "the", "there", "this", "three", "to", "top", "topmost", "triangle",
    "triangles", "two", "use", "using", "what", "with", "word", "words", "written", "yellow", "yes", "you", "your",
)
#: Words that came later.
LATER_WORDS = (
    "I", "across", "cannot", "checked", "dark", "dotted", "down", "ground", "leaning", "lying", "outline", "pale",
    "plain", "sloping", "solid", "striped", "tinted", "under", "upright",
)
# fmt: on


def lists() -> tuple[tuple[str, ...], ...]:
    """Return the lists in the order in which they came."""
    return WORDS, LATER_WORDS
