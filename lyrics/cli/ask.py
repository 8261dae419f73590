"""``lyrics ask IMAGE... QUESTION``: one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lyrics.cli._abstaining import AbstainBelowOption, AbstainFlag, asked_abstaining
from lyrics.cli._generation import (
    BeamsOption,
    PenaltyOption,
    SeedOption,
    TemperatureOption,
    TopPOption,
    generation_options,
)
from lyrics.cli._model import (
    BoxesOption,
    DeviceOption,
    DownloadFlag,
    DtypeOption,
    ModelOption,
    RefinedOption,
    TokensOption,
    WeightsOption,
    answer_data,
    answer_lines,
    box_form,
    draw_answer,
    open_model,
    warn_of_unknown_images,
)
from lyrics.cli._output import JsonFlag, SetOption, print_json, print_text


def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[IMAGE]... QUESTION", help="Images, then the question, which may hold <box 10 20 200 180>."
        ),
    ],
    model: ModelOption = "lyrics-tiny",
    settings: SetOption = None,
    weights: WeightsOption = "pretrained",
    download: DownloadFlag = False,
    refined: RefinedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    max_new_tokens: TokensOption = 128,
    num_beams: BeamsOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    repetition_penalty: PenaltyOption = None,
    seed: SeedOption = None,
    abstain: AbstainFlag = False,
    abstain_below: AbstainBelowOption = None,
    boxes: BoxesOption = "original",
    draw: Annotated[Path | None, typer.Option(help="Write the last image with the answer's boxes here.")] = None,
    json: JsonFlag = False,
) -> None:
    """Ask about one image, several, or none.

    Boxes of the question and of the answer are in pixels of the last image.

    Decoding is greedy. --temperature or --top-p sample instead, --num-beams searches; names and meaning are those of
    transformers.
    """
    from lyrics.core.errors import ImageError, PromptError

    *pictures, question = words
    form = box_form(boxes)
    if draw is not None and not pictures:
        raise PromptError(f"--draw {draw}: there is no image to draw on.")
    if not question.strip():
        raise PromptError("the prompt is empty; ask something.")
    missing = next((picture for picture in pictures if not Path(picture).is_file()), None)
    if missing is not None:
        raise ImageError(
            f"{missing}: no such image. The last argument is the question, all before it are images.", "missing"
        )
    if not pictures and Path(question).is_file():
        raise PromptError(f"{question}: is an image; write the question after it.")
    options = generation_options(num_beams, temperature, top_p, repetition_penalty, seed, max_new_tokens)
    abstaining = asked_abstaining(abstain, abstain_below)
    opened = open_model(model, weights, settings, refined, device, dtype, download=download)
    warn_of_unknown_images(opened, pictures)
    chat = opened.chat(*pictures)
    answer = chat.ask(question, abstaining=abstaining, **options)
    if draw is not None:
        draw_answer(answer, Path(pictures[-1]), draw)
    if json:
        print_json({"pictures": pictures, "question": question, **answer_data(answer, form)})
        return
    print_text(answer.plain_text if answer.objects else answer.text)
    for line in answer_lines(answer, form):
        print_text(line)
    if draw is not None:
        print_text(f"drawn in {draw}")
