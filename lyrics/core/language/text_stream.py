"""Token ids into text as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class TextStream:
    """Turns ids into text as they come; a character whose bytes are not all there yet is held back."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.ids: list[int] = []
        self.written = ""

    def __call__(self, token: int) -> None:
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(self.written):
            return
        if new := text[len(self.written) :]:
            self.on_text(new)
            self.written = text
