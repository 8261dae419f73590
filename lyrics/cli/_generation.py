"""Options of the commands that answer: how an answer is decoded, under transformers' names."""

from __future__ import annotations

from typing import Annotated, Any

import typer

BeamsOption = Annotated[
    int | None,
    typer.Option(
        "--num-beams", help="Number of beams; 1 is greedy. With several, a chat prints each answer when it is complete."
    ),
]
TemperatureOption = Annotated[float | None, typer.Option("--temperature", help="Sample at this temperature, above 0.")]
TopPOption = Annotated[
    float | None, typer.Option("--top-p", help="Sample from the most probable tokens that add up to this share.")
]
PenaltyOption = Annotated[
    float | None,
    typer.Option("--repetition-penalty", help="Above 1: tokens that the answer already contains become less probable."),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="Seed of sampling: the same seed gives the same answer.")
]


def generation_options(
    num_beams: int | None,
    temperature: float | None,
    top_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Return what was given, as ``ask`` of a chat takes it. Raises ``SpecError`` for a value that cannot be met."""
    from lyrics.core.errors import SpecError
    from lyrics.core.language.generation import decoding

    given = {
        "num_beams": num_beams,
        "temperature": temperature,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
    }
    if seed is not None and temperature is None and top_p is None:
        raise SpecError(
            f"--seed {seed}: nothing is drawn without --temperature or --top-p; add one, or leave out the seed."
        )
    options = {name: value for name, value in given.items() if value is not None}
    decoding(
        {name: value for name, value in options.items() if name not in ("seed", "max_new_tokens")},
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    return options
