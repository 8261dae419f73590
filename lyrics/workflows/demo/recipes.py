"""What was done on the page, as a command and as a program that do the same."""

from __future__ import annotations

import json
import pprint
import shlex
from collections.abc import Mapping, Sequence
from typing import Any


def command(model: str, overrides: Mapping[str, Any], questions: Sequence[str]) -> str:
    """``lyrics refine``, ``lyrics ask`` or ``lyrics chat`` with the image as ``image.png``."""
    options = [] if model == "lyrics-tiny" else ["--model", model]
    for path, value in overrides.items():
        options += ["--set", f"{path}={value if isinstance(value, str) else json.dumps(value)}"]
    if not questions:
        words = ["lyrics", "refine", "image.png", "--spec", model, *options[2 if model != "lyrics-tiny" else 0 :]]
        return shlex.join([*words, "--out", "refined"])
    if len(questions) == 1:
        return shlex.join(["lyrics", "ask", "image.png", questions[0], *options])
    asked = "\n".join(questions)
    return f"{shlex.join(['lyrics', 'chat', 'image.png', *options])} <<'END'\n{asked}\nEND"


def program(model: str, overrides: Mapping[str, Any], questions: Sequence[str]) -> str:
    """The same in Python."""
    more = f", overrides={pprint.pformat(dict(overrides), sort_dicts=False)}" if overrides else ""
    lines = ["import lyrics", "", f"model = lyrics.load_model({model!r}{more})"]
    if not questions:
        lines += ['found = model.refiner("image.png")', "for one in found.objects:"]
        return "\n".join([*lines, "    print(one.tag, one.score, one.box_norm.to_px(found.size_px))"])
    lines.append('chat = model.chat("image.png")')
    lines += [f"answer = chat.ask({question!r})" for question in questions]
    lines += ["print(answer.plain_text)", "for one in answer.objects:", "    print(one.tag, one.box_px, one.supported)"]
    return "\n".join(lines)
