"""Third-party text in a form that is safe for a terminal: no escape sequence acts, nothing is of any length."""

from __future__ import annotations

import re

#: What a terminal acts on or a reader is misled by: control characters but tab and line feed, marks that turn the
#: direction of writing, line separators, and halves of surrogate pairs, which cannot be printed at all.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return the text with every character that a terminal would act on written out, such as ``\\x1b``.

    Line feeds and tabs stay.
    """
    return _UNPRINTABLE.sub(_escape, text)


def one_line(text: str, longest: int = 200) -> str:
    """Return the text as one printable line of at most ``longest`` characters; one that is cut ends in ``...``."""
    # Cut first: what is thrown away need not be looked at.
    found = printable(" ".join(text[: 4 * longest].split()))
    return found if len(found) <= longest and len(text) <= 4 * longest else f"{found[: longest - 3]}..."


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def json_printable(text: str) -> str:
    """Return JSON text with the same characters written as JSON's own escapes; what it stands for stays the same."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def reason_of(error: BaseException) -> str:
    """Return one line of what an exception says, without a full stop: it goes on within a sentence."""
    return one_line(str(error), 300).rstrip(".")
