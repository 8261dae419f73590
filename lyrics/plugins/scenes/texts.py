"""The data set ``scene-texts``: scenes as the refiner writes them, and a conversation about each: for language models that see nothing."""

from __future__ import annotations

from PIL import Image

from lyrics.core.contracts import BuildContext
from lyrics.core.data.draws import generator
from lyrics.core.spatial import SpatialObject, format_objects
from lyrics.core.types import Sample, Turn
from lyrics.plugins.scenes import ScenesOptions, SceneTextsOptions
from lyrics.plugins.scenes.dataset import Scenes, turns_about
from lyrics.plugins.scenes.layout import Draws, Scene

_LIST = "Provide the coordinates of all objects."


class SceneTexts:
    """Row i is scene i of ``scenes`` with the same split and seed: its objects in the codec ``lyrics``, then the turns."""

    def __init__(self, options: SceneTextsOptions) -> None:
        self.options = options
        self._scenes = Scenes(
            ScenesOptions(
                split=options.split, scenes=options.scenes, seed=options.seed, max_objects=options.max_objects
            )
        )

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Sample:
        """Raises ``IndexError`` unless ``0 <= index < len``."""
        scene = self._scenes.scene(index)
        draws = Draws(generator(self.options.seed, "scene-texts", scene.number))
        written, again = (format_objects(_seen(scene, draws)) for _ in range(2))
        # To say everything again, in another order, comes first: nothing teaches sooner to look up what was written before.
        turns = turns_about(scene, draws, index, self.options.seed, self.options.turns - 1)
        turns = (Turn(f"{written}\n{_LIST}", again), *turns)
        return Sample(image=None, turns=turns, source=f"scene-texts {self.options.split}/{index}")

    def picture(self, sample: Sample) -> Image.Image | None:
        return None


def _seen(scene: Scene, draws: Draws) -> list[SpatialObject]:
    """Things and words as a refiner names them, in any order."""
    named = [(thing.tag, thing.box) for thing in scene.things]
    named += [(f'word "{word.text}"', word.box) for word in scene.words]
    return [SpatialObject(tag, box) for tag, box in draws.shuffled(named)]


def build(options: SceneTextsOptions, context: BuildContext) -> SceneTexts:
    return SceneTexts(options)
