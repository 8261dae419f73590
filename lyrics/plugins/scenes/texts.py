"""The data set ``scene-texts``: scenes as the refiner writes them, and a conversation about each: for language models
that see nothing.
"""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from lyrics.core.contracts import BuildContext
from lyrics.core.data.draws import generator
from lyrics.core.data.templates import TEMPLATES, fill
from lyrics.core.language.codecs import format_objects
from lyrics.core.language.mentions import snapped
from lyrics.core.types import Sample, Turn
from lyrics.plugins.scenes import ScenesOptions, SceneTextsOptions
from lyrics.plugins.scenes.dataset import Scenes, turns_about
from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.fine_texts import fine_text
from lyrics.plugins.scenes.layout import Scene
from lyrics.plugins.scenes.listing import SAME_IOU, listed
from lyrics.plugins.scenes.questions import (
    BY_TYPE,
    VISUAL,
    Ask,
    Question,
    ask_amount,
    ask_count,
    ask_sized,
    ask_what,
    ask_where,
    ask_word,
)

#: Those that need more than a look at one object are learnt last, so they come more often.
_PLAIN = (*VISUAL, *VISUAL, ask_word, ask_where, ask_where, ask_where, ask_what, ask_what)
_LIST = "Provide the coordinates of all objects."


class SceneTexts:
    """Row i is scene i of ``scenes`` with the same split and seed: its objects in the codec ``lyrics``, then the turns.

    With plain questions ``Sample.extra["question_types"]`` has the type of each turn.
    """

    def __init__(self, options: SceneTextsOptions) -> None:
        self.options = options
        self._scenes = Scenes(
            ScenesOptions(
                split=options.split,
                scenes=options.scenes,
                seed=options.seed,
                max_objects=options.max_objects,
                attributes=options.attributes,
                questions=options.questions,
            )
        )

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Sample:
        """Raises ``IndexError`` unless ``0 <= index < len``."""
        if self.options.attributes == "fine":
            return self._fine(index)
        scene = self._scenes.scene(index)
        draws = Draws(generator(self.options.seed, "scene-texts", scene.number))
        objects = [found for _, found in listed(scene, draws, self.options.box_error)]
        # To say everything again, in another order, comes first: nothing teaches sooner to look up what was written
        # before.
        repeated = [Turn(_LIST, format_objects(draws.shuffled(objects)))] if self.options.repeat else []
        most = self.options.turns - len(repeated)
        extra = {}
        if self.options.plain:
            asks = tuple(BY_TYPE[name] for name in self.options.types) or _PLAIN
            questions = _plain_questions(scene, draws, asks, most)
            if self.options.worded:
                questions = [_worded(one, draws) for one in questions]
            turns = tuple(Turn(one.text, one.answer) for one in questions)
            extra["question_types"] = (*("repetition" for _ in repeated), *(one.type for one in questions))
        else:
            turns = turns_about(scene, draws, index, self.options.seed, most)
        if self.options.box_error:
            boxes = [one.box for one in objects]
            turns = tuple(Turn(turn.instruction, snapped(turn.answer, boxes, SAME_IOU)) for turn in turns)
        first, *others = (*repeated, *turns)
        first = Turn(f"{format_objects(objects)}\n{first.instruction}", first.answer)
        source = f"scene-texts {self.options.split}/{index}"
        return Sample(image=None, turns=(first, *others), source=source, extra=extra)

    def _fine(self, index: int) -> Sample:
        options = self.options
        # Twins say different things, so that they are two texts and not one.
        told = self._scenes.told(index, purpose=f"scene-texts: fine {index % 2}", laid=False)
        text = fine_text(
            told,
            most=options.turns - options.repeat,
            box_error=options.box_error,
            share_told=options.told,
            share_listed=options.listed,
            plain=options.plain,
        )
        turns = tuple(Turn(turn.instruction, snapped(turn.answer, text.boxes, SAME_IOU)) for turn in text.turns)
        first = Turn(f"{text.context}\n{turns[0].instruction}", turns[0].answer)
        source = f"scene-texts {options.split}/{index}"
        return Sample(image=None, turns=(first, *turns[1:]), source=source, extra={"question_types": text.types})

    def picture(self, sample: Sample) -> Image.Image | None:
        return None


def _plain_questions(scene: Scene, draws: Draws, asks: tuple[Ask, ...], most: int) -> list[Question]:
    """Different questions about the scene, ``most`` of them or fewer where it has no more to ask.

    How many objects can always be asked.
    """
    questions = [draws.pick(asks)(scene, draws) for _ in range(2 * most)]
    different = {question.text: question for question in questions if question}
    return [*different.values()][:most] or [ask_count(scene, draws)]


def _worded(question: Question, draws: Draws) -> Question:
    """A question of the kinds that the task ``vqa`` asks in one of its templates; others as they are."""
    if BY_TYPE[question.type] not in (*VISUAL, ask_amount, ask_sized):  # type: ignore[index]
        return question
    return replace(question, text=fill(draws.pick(TEMPLATES["vqa"]), {"Question": question.text}))


def build(options: SceneTextsOptions, context: BuildContext) -> SceneTexts:
    return SceneTexts(options)
