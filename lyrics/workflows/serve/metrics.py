"""What a server counts, in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class _Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip([*self.bounds, None], self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{"+Inf" if bound is None else format(bound, "g")}"}} {total}'
        yield f"{name}_sum {self.sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """Counters and histograms of a server; safe across threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, int], int] = {}
        self._tokens = {"prompt": 0, "answer": 0}
        self._canceled = self._recalled = 0
        self._seconds = _Histogram(_SECONDS)
        self._first = _Histogram(_SECONDS)
        self._looks = _Histogram(_SIZES)
        self._steps = _Histogram(_SIZES)

    def responded(self, route: str, status: int, seconds: float) -> None:
        """A response has ended. ``route`` is one of the server's own, and never what a client wrote."""
        with self._lock:
            self._requests[route, status] = self._requests.get((route, status), 0) + 1
            self._seconds.add(seconds)

    def answered(self, prompt_tokens: int, answer_tokens: int) -> None:
        with self._lock:
            self._tokens["prompt"] += prompt_tokens
            self._tokens["answer"] += answer_tokens

    def began(self, seconds: float) -> None:
        """The first of an answer was told so long after its request."""
        with self._lock:
            self._first.add(seconds)

    def gave_up(self) -> None:
        """A client went away before its answer."""
        with self._lock:
            self._canceled += 1

    def looked(self, images: int, *, recalled: int) -> None:
        """So many images were looked at together, and so many were known already."""
        with self._lock:
            if images:
                self._looks.add(images)
            self._recalled += recalled

    def stepped(self, answers: int) -> None:
        """A token of so many answers was written together."""
        with self._lock:
            self._steps.add(answers)

    def text(self, now: Mapping[str, int]) -> str:
        """Everything as text; ``now`` are numbers that go up and down: name -> value."""
        with self._lock:
            return "\n".join(self._lines(now)) + "\n"

    def _lines(self, now: Mapping[str, int]) -> Iterator[str]:
        yield from _head("lyrics_requests_total", "counter", "Responses by route and status.")
        for (route, status), count in sorted(self._requests.items()):
            yield f'lyrics_requests_total{{route="{route}",status="{status}"}} {count}'
        yield from _head("lyrics_tokens_total", "counter", "Tokens of prompts and of answers.")
        for kind, count in self._tokens.items():
            yield f'lyrics_tokens_total{{kind="{kind}"}} {count}'
        yield from _head("lyrics_disconnects_total", "counter", "Clients that went away before their answer.")
        yield f"lyrics_disconnects_total {self._canceled}"
        yield from _head("lyrics_recalled_images_total", "counter", "Images whose looks were known from before.")
        yield f"lyrics_recalled_images_total {self._recalled}"
        for name, value in now.items():
            yield from _head(f"lyrics_{name}", "gauge", f"{name.replace('_', ' ').capitalize()} at this moment.")
            yield f"lyrics_{name} {value}"
        for name, histogram, text in (
            ("lyrics_request_seconds", self._seconds, "From a request to the end of its response."),
            ("lyrics_first_token_seconds", self._first, "From a request to the first text of its answer."),
            ("lyrics_look_images", self._looks, "Images that were looked at together."),
            ("lyrics_step_answers", self._steps, "Answers of which a token was written together."),
        ):
            yield from _head(name, "histogram", text)
            yield from histogram.lines(name)


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
