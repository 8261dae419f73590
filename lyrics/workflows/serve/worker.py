"""The one thread that owns a model: jobs come in by a bounded queue, and are met in the order in which they came.

What has come is looked at together; answers are written together, a token of each at a time, and a new one joins
between two tokens. The results of a job are those that it would get alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import torch

from lyrics.core.answers import Confidence, read_answer
from lyrics.core.contracts import ContinuesTogether
from lyrics.core.errors import LyricsError
from lyrics.core.language.prompting import Encoded, checked_prompt
from lyrics.core.language.prompts import TokenPrompt
from lyrics.core.language.running import RunningAnswers, Writing, can_run
from lyrics.core.model import LyricsModel
from lyrics.workflows.serve.jobs import Answered, AnswerText, AskJob, Event, Failed, Job, Refined, RefineJob, TextPiece
from lyrics.workflows.serve.limits import Limits, QueueFullError, StoppingError
from lyrics.workflows.serve.metrics import Metrics
from lyrics.workflows.serve.seen import SeenImages
from lyrics.workflows.serve.whole import WholeAnswers, embed_together

_logger = logging.getLogger(__name__)


class _Open:
    """An answer that is being written."""

    def __init__(self, job: AskJob, encoded: Encoded, prompt: TokenPrompt, text: AnswerText) -> None:
        self.job, self.encoded, self.prompt, self.text = job, encoded, prompt, text


class Worker:
    """Meets jobs with a model.

    Args:
        model: a model in evaluation mode; nothing else may use it from now on.
        limits: how many wait, are looked at and are written together.
        metrics: where what happens is counted.
    """

    def __init__(self, model: LyricsModel, limits: Limits | None = None, metrics: Metrics | None = None) -> None:
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._coming: tuple[LyricsModel, Callable[[], None]] | None = None
        self._stopping = False
        self._open: dict[Writing, _Open] = {}
        self._take_model(model)
        self._thread = threading.Thread(target=self._run, name="lyrics-worker", daemon=True)

    def _take_model(self, model: LyricsModel) -> None:
        self.model = model
        self._seen = SeenImages(model, self.limits.seen_bytes)
        language_model = model.language_model
        prompts = language_model.running() if isinstance(language_model, ContinuesTogether) else None
        self._running: RunningAnswers | None = None
        if prompts is not None and isinstance(language_model, ContinuesTogether):
            self._running = RunningAnswers(prompts, language_model.ends)
        self._whole = WholeAnswers(language_model, model.spec.language_model.use, self._watch)

    # --- from any thread ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Meet what has come, take no more, and return when all is done."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn."""
        return len(self._waiting)

    @property
    def writing(self) -> int:
        """Answers that are being written."""
        return len(self._open)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def check_room(self) -> None:
        """Raise ``QueueFullError`` or ``StoppingError`` where no job would be taken now."""
        if self._stopping:
            raise StoppingError("the server is stopping; it takes no more requests.")
        if len(self._waiting) >= self.limits.waiting:
            seconds = self._half_a_queue()
            raise QueueFullError(
                f"{self.limits.waiting} requests wait already, which is as many as may; try again in "
                f"{seconds} second{'s' if seconds > 1 else ''}.",
                seconds,
            )

    def _half_a_queue(self) -> int:
        """Seconds, 1 to 60, in which half of those that wait will have had their turn, if the next ones take as long
        as the last ones: half of what the one that is first in the queue has waited for.
        """
        try:
            waited = time.monotonic() - self._waiting[0].came
        except IndexError:  # all were taken meanwhile
            return 1
        return min(60, max(1, round(waited / 2)))

    def submit(self, job: Job) -> None:
        """Take in a job. Raises as ``check_room``."""
        with self._changed:
            self.check_room()
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for a job any more: it gives up its place in the queue at once, or in the batch at the next
        token.
        """
        with self._changed:
            job.canceled = True
            if job in self._waiting:
                self._waiting.remove(job)

    def exchange(self, model: LyricsModel, done: Callable[[], None] = lambda: None) -> None:
        """Let another model meet what is not begun yet. ``done`` is called, in the worker's thread, when it does."""
        with self._changed:
            self._coming = (model, done)
            self._changed.notify()

    # --- in the worker's thread --------------------------------------------------------------------------------------

    @torch.no_grad()
    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._open or self._coming or self._stopping):
                    self._changed.wait()
                if self._stopping and not self._waiting and not self._open:
                    return
                if self._coming is not None and not self._open:
                    (model, done), self._coming = self._coming, None
                    self._take_model(model)
                    done()
                new = self._next() if self._coming is None else []
            try:
                if new:
                    self._begin(new)
                self._write()
            except Exception as error:  # whatever is left: nobody may be left waiting
                _logger.exception("the worker failed")
                for one in [*new, *(entry.job for entry in self._open.values())]:
                    self._fail(one, error)
                self._open.clear()
                self._take_model(self.model)

    def _next(self) -> list[Job]:
        """The jobs that are begun now: as many as there is room for, in the order in which they came."""
        found: list[Job] = []
        images = 0
        while self._waiting:
            job = self._waiting[0]
            if job.late:
                self._fail(self._waiting.popleft(), job.lateness())
                continue
            images += len(job.images)
            full = isinstance(job, AskJob) and len(self._open) + len(found) >= self.limits.batch
            if full or (found and images > self.limits.looks):
                break
            found.append(self._waiting.popleft())
        return found

    def _begin(self, jobs: Sequence[Job]) -> None:
        refining = [job for job in jobs if isinstance(job, RefineJob)]
        for told in (False, True):
            group = [job for job in refining if (job.phrases is not None) is told]
            if group:
                self._each_or_all(group, self._refine)
        asking = [job for job in jobs if isinstance(job, AskJob)]
        if asking:
            self._each_or_all(asking, self._look)

    def _each_or_all(self, jobs: Sequence[Job], meet: Callable[[Sequence[Job]], None]) -> None:
        """Meet jobs together; where that fails, each alone, so that one that cannot be met harms no other."""
        try:
            meet(jobs)
            return
        except Exception as error:
            if len(jobs) == 1:
                self._fail(jobs[0], error)
                return
        for job in jobs:
            if not job.over:
                self._each_or_all([job], meet)

    def _refine(self, jobs: Sequence[Job]) -> None:
        refiner = self.model.refiner
        if refiner is None:
            raise LyricsError("this model has no refiner, so there is nothing that finds objects.")
        refining = [job for job in jobs if isinstance(job, RefineJob)]
        new = []
        for job in refining:
            known = self._seen.recall(job.images[0]) if job.phrases is None else None
            if known is None:
                new.append(job)
            else:
                self._finish(job, Refined(known))
        self.metrics.looked(len(new), recalled=len(refining) - len(new))
        if not new:
            return
        images = [job.images[0] for job in new]
        phrases = [job.phrases for job in new if job.phrases is not None]
        found = refiner(images, phrases or None)
        for job, refinement in zip(new, found, strict=True):
            self._finish(job, Refined(refinement))

    def _look(self, jobs: Sequence[Job]) -> None:
        asking = [job for job in jobs if isinstance(job, AskJob)]
        images = [image for job in asking for image in job.images]
        before = self._seen.looked
        encoded = self._seen.look(images, [question for job in asking for question in job.questions])
        looked = self._seen.looked - before
        self.metrics.looked(looked, recalled=len(images) - looked)
        start = 0
        together: list[_Open] = []
        for job in asking:
            own = encoded.rows(start, start + len(job.images))
            start += len(job.images)
            try:
                prompt = checked_prompt(
                    job.exchanges, own, job.how.max_new_tokens, self.model.spec, self.model.language_model
                )
            except LyricsError as error:
                self._fail(job, error)
                continue
            text = AnswerText(self.model.language_model.tokenizer, job.stop)
            together.append(_Open(job, own, prompt, text))
        self._join(together)

    def _join(self, new: Sequence[_Open]) -> None:
        if not new:
            return
        running = self._running
        if running is None:
            for one in new:
                self._whole.join(one.prompt, one.encoded.soft_tokens_PQD, one.job.writing, alone=_is_followed(one.job))
        else:
            language_model = self.model.language_model
            rows = [one.encoded.soft_tokens_PQD for one in new]
            _, soft = embed_together([one.prompt for one in new], rows, language_model)
            running.join(soft, [one.job.writing for one in new])
        for one in new:
            self._open[one.job.writing] = one

    def _write(self) -> None:
        """A token of every answer, or a batch of whole answers; and what became of them is told."""
        if not self._open:
            return
        for one in list(self._open.values()):
            self._end_if_unwanted(one)
        steps = self._running if self._running is not None and len(self._running) else self._whole
        if len(steps):
            self.metrics.stepped(len(steps))
            try:
                steps.step()
            except Exception as error:
                lost = [one for one in self._open.values() if one.job.writing.end is None]
                if steps is self._whole:
                    waiting = {writing for _, _, writing, _ in self._whole.waiting}
                    lost = [one for one in lost if one.job.writing not in waiting]
                for one in lost:
                    del self._open[one.job.writing]
                    self._fail(one.job, error)
        for one in list(self._open.values()):
            self._tell(one)

    def _end_if_unwanted(self, one: _Open) -> None:
        job = one.job
        if job.canceled:
            job.writing.end = "stop"
        elif job.late and not job.writing.over:
            job.writing.error = job.lateness()

    def _watch(self, writing: Writing) -> None:
        """After a token of an answer that is written alone, within one step."""
        one = self._open[writing]
        self._end_if_unwanted(one)
        if not writing.over:
            self._tell(one)

    def _tell(self, one: _Open) -> None:
        job, writing = one.job, one.job.writing
        if writing.error is not None:
            del self._open[writing]
            self._fail(job, writing.error)
            return
        if writing.over or job.follow or job.stop:
            piece = one.text.read(writing.ids, over=writing.over)
            if piece and job.follow and not job.canceled:
                job.tell(TextPiece(piece))
            if one.text.stopped and not writing.over:
                writing.end = "stop"
        if not writing.over:
            return
        self._open.pop(writing, None)
        seen = one.encoded.refinements
        shown = [picture for exchange in job.exchanges for picture in exchange.images]
        confidence = Confidence.of(writing.log_probs)
        answer = read_answer(one.text.told, self.model.spec.codec, seen[shown[-1]] if shown else None, confidence)
        finish = "stop" if one.text.stopped else str(writing.end)
        self._finish(job, Answered(answer, seen, len(one.prompt), len(writing.ids), finish))

    def _finish(self, job: Job, event: Event) -> None:
        job.over = True
        if not job.canceled:
            job.tell(event)

    def _fail(self, job: Job, error: Exception) -> None:
        if not job.over:
            self._finish(job, Failed(error))


def _is_followed(job: AskJob) -> bool:
    return job.follow or bool(job.stop) or not can_run(job.how)
