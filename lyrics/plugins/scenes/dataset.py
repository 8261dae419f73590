"""The data set ``scenes``: row i of a split is scene i of its range, whatever is said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from PIL import Image

from lyrics.core.contracts import BuildContext
from lyrics.core.data.conversation import converse
from lyrics.core.data.draws import generator
from lyrics.core.types import Sample, Turn
from lyrics.plugins.scenes import ScenesOptions
from lyrics.plugins.scenes.drawing import draw_scene
from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.fine import make_fine_scene
from lyrics.plugins.scenes.fine_captions import FINE_CAPTIONS
from lyrics.plugins.scenes.fine_drawing import draw_fine_scene
from lyrics.plugins.scenes.fine_questions import Twins
from lyrics.plugins.scenes.fine_samples import Told, fine_sample, fine_turns
from lyrics.plugins.scenes.language import (
    Kind,
    captions_of,
    expression_for,
    names_of,
    place_of,
    place_phrase,
    with_article,
)
from lyrics.plugins.scenes.layout import Scene, Thing, make_scene, scene_number
from lyrics.plugins.scenes.names import SINGLE_TASKS, TASKS_OF_CONVERSATION, SceneTask, SingleTask
from lyrics.plugins.scenes.questions import (
    CHOICE,
    OPTIONS,
    VISUAL,
    Question,
    absent_pair,
    ask,
    ask_about,
    ask_what,
    ask_where,
    ask_word,
    with_options,
)
from lyrics.plugins.scenes.telling import Telling

_TURNS_OF_DIALOGUE = 3
_TURNS_OF_CONVERSATION = 6
#: Of referring expressions, those that nothing in the image matches.
_ABSENT_SHARE = 0.15


class Scenes:
    """See ``ScenesOptions``. ``Sample.image`` is ``"SPLIT/INDEX"``; ``picture`` draws it.

    ``Sample.extra`` has ``task``, ``question_types`` and ``answers`` (of the turns, in order), what the task needs
    (``options``, ``absent``), and the ground truth as plain data: ``things`` (colour, shape, size and box, in the order
    of laying) and ``words`` (text and box). Of fine scenes ``things`` also have fill, lean and outline, and there are
    ``ground``, ``texture`` and ``overlaps`` (upper and lower thing), and ``groups`` are the groups of the questions.
    """

    def __init__(self, options: ScenesOptions) -> None:
        self.options = options

    def __len__(self) -> int:
        return self.options.scenes

    def scene(self, index: int) -> Scene:
        """The layout of a row. Raises ``IndexError`` unless ``0 <= index < len``."""
        number = self._number(index)
        make = make_fine_scene if self.options.attributes == "fine" else make_scene
        return make(self.options.seed, number, side=self.options.side, max_objects=self.options.max_objects)

    def _number(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"scenes {self.options.split} has rows 0 to {len(self) - 1}, not {index}")
        return scene_number(self.options.split, index)

    def __getitem__(self, index: int) -> Sample:
        task = self.options.task
        key = f"{self.options.split}/{index}"
        if self.options.attributes == "fine":
            return self._fine(index, task, key)
        scene = self.scene(index)
        draws = Draws(generator(self.options.seed, "scenes: language", scene.number))
        if task == "conversation":
            turns = turns_about(scene, draws, index, self.options.seed, _TURNS_OF_CONVERSATION)
            return replace(Telling(scene, draws, key).sample("text"), turns=turns)
        return sample_of(scene, draws.pick(SINGLE_TASKS) if task == "mixed" else task, draws, key)

    def _fine(self, index: int, task: SceneTask, key: str) -> Sample:
        if task == "mixed":
            return self._fine(index, self.told(index).draws.pick(SINGLE_TASKS), key)
        if task == "caption":  # of one twin, so its draws are its own
            scene = self.scene(index)
            draws = Draws(generator(self.options.seed, "scenes: language", scene.number))
            captions = FINE_CAPTIONS[self.options.captions](scene, draws)
            return Telling(scene, draws, key).sample("caption", captions=captions)
        told = self.told(index, key)
        if task == "conversation":
            turns = fine_turns(told, index, self.options.seed, self.options.turns, plain=self.options.plain)
            return replace(told.sample("text"), turns=turns)
        return fine_sample(told, task)

    def told(self, index: int, key: str = "", purpose: str = "scenes: fine language", *, laid: bool = True) -> Told:
        """A fine scene with its twin, and draws for ``purpose`` that both share. Raises ``IndexError`` as ``scene``
        does.

        Unless ``laid``, of pixels nothing is known (``make_fine_scene``).
        """
        options, number = self.options, self._number(index)
        side, most = options.side, options.max_objects
        scenes = [
            make_fine_scene(options.seed, one, side=side, max_objects=most, laid=laid and one == number)
            for one in (number // 2 * 2, number // 2 * 2 + 1)
        ]
        draws = Draws(generator(options.seed, purpose, number // 2))
        return Told(Twins(*scenes), number % 2, draws, key, options.questions)

    def picture(self, sample: Sample) -> Image.Image:
        """Raises ``ValueError`` for a sample of another split."""
        split, _, index = (sample.image or "").partition("/")
        if split != self.options.split or not index.isdecimal():
            raise ValueError(f"{sample.image!r} is no image of the split {self.options.split!r} of scenes")
        draw = draw_fine_scene if self.options.attributes == "fine" else draw_scene
        return draw(self.scene(int(index)), self.options.seed)


def build(options: ScenesOptions, context: BuildContext) -> Scenes:
    return Scenes(options)


def sample_of(scene: Scene, task: SingleTask, draws: Draws, key: str) -> Sample:
    """What is said of a scene for a task; ``key`` names its image."""
    return _SAMPLES[task](Telling(scene, draws, key))


def turns_about(scene: Scene, draws: Draws, index: int, seed: int, most: int) -> tuple[Turn, ...]:
    """A conversation of ``most`` turns (or all there are) about scene ``index`` of its split, in which several tasks
    take turns.
    """
    turns: list[Turn] = []
    for number, task in enumerate(draws.shuffled(TASKS_OF_CONVERSATION)):
        if len(turns) >= most:
            break
        position = index * len(TASKS_OF_CONVERSATION) + number
        turns += converse(sample_of(scene, task, draws, ""), seed=seed, position=position)
    return tuple(turns[:most])


def _caption(telling: Telling) -> Sample:
    return telling.sample("caption", captions=captions_of(telling.scene, telling.draws))


def _vqa(telling: Telling) -> Sample:
    return telling.sample("vqa", questions=(ask(telling.scene, telling.draws, VISUAL),))


def _text_vqa(telling: Telling) -> Sample:
    return telling.sample("text-vqa", questions=(ask_word(telling.scene, telling.draws),))


def _grounded_caption(telling: Telling) -> Sample:
    target = telling.draws.pick(telling.scene.things)
    return telling.sample("grounded-caption", captions=_descriptions(telling.scene, target), first=target)


def _descriptions(scene: Scene, target: Thing) -> tuple[str, ...]:
    """True captions of one thing."""
    full = with_article(Kind(target.colour, target.shape, target.size).noun())
    place = place_of(target.box)
    return (full,) if place is None else (full, f"{full} {place_phrase(place)}")


def _rec(telling: Telling) -> Sample:
    scene, draws = telling.scene, telling.draws
    if draws.unit() < _ABSENT_SHARE and (pair := absent_pair(scene, draws)):
        return telling.sample("rec", absent=Kind(*pair).noun())
    # Things that need more than their own name first: they are what a referring expression is for.
    things = sorted(draws.shuffled(scene.things), key=lambda thing: bool(names_of(scene, thing)))
    for target in things:
        if expression := expression_for(scene, target, draws):
            return telling.sample("rec", first=target, tag=expression)
    # Nothing tells the things apart: what is not there can still be asked for.
    pair = absent_pair(scene, draws)
    assert pair is not None
    return telling.sample("rec", absent=Kind(*pair).noun())


def _referential(telling: Telling) -> Sample:
    scene, draws = telling.scene, telling.draws
    target = draws.pick(scene.things)
    if draws.below(4) == 0:
        return telling.sample("referential", captions=_descriptions(scene, target), first=target)
    return telling.sample("referential", first=target, questions=(ask_about(scene, target, draws),))


def _multiple_choice(telling: Telling) -> Sample:
    question = ask(telling.scene, telling.draws, CHOICE)
    while len(question.choices) < OPTIONS:
        question = ask(telling.scene, telling.draws, CHOICE)
    options = with_options(question, telling.draws)
    return telling.sample("multi-choice", questions=(question,), options=tuple(options))


def _dialogue(telling: Telling) -> Sample:
    questions: list[Question] = []
    while len(questions) < _TURNS_OF_DIALOGUE:
        question = ask(telling.scene, telling.draws, (*VISUAL, ask_word, ask_where, ask_what))
        if question.text not in [one.text for one in questions]:
            questions.append(question)
    return telling.sample("text", questions=tuple(questions))


_SAMPLES: dict[SingleTask, Callable[[Telling], Sample]] = {
    "caption": _caption,
    "vqa": _vqa,
    "text-vqa": _text_vqa,
    "grounded-caption": _grounded_caption,
    "rec": _rec,
    "referential": _referential,
    "multi-choice": _multiple_choice,
    "dialogue": _dialogue,
}
