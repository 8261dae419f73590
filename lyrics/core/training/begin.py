"""What a run of stage 1 begins with: trained weights, where its configuration asks for some."""

from __future__ import annotations

from lyrics.core.errors import SpecError
from lyrics.core.resolve import resolve
from lyrics.core.runs.config import TrainConfig


def check_start(config: TrainConfig) -> None:
    """Raise ``SpecError`` where stage 1 would begin with a random query transformer, and must not.

    It names the published files that ``lyrics convert`` makes a checkpoint of, as the component declares them.
    """
    model = config.model
    if config.stage != "pretrain" or model.allow_random_start or model.start_from is not None:
        return
    part = resolve(model.spec).parts["query_transformer"]
    if model.weights == "pretrained" and getattr(part.options, "checkpoint", None) is not None:
        return
    if model.weights not in ("pretrained", "random"):  # a model folder
        return
    ways = [
        f"'lyrics convert {file} FOLDER --from {one.format}'"
        for one in part.entry.component.converters
        if not one.whole_model
        for file in one.published
    ]
    made = f"Make a checkpoint by {' or '.join(ways)}, and give" if ways else "Give"
    raise SpecError(
        f"model.allow_random_start is false, and {part.label} would begin with random weights. {made} --set "
        "model.spec.query_transformer.options.checkpoint=FOLDER; or begin with random weights all the same: --set "
        "model.allow_random_start=true."
    )
