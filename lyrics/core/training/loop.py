"""A run, from the newest checkpoint to the last step.

It records as it goes, and stops where a signal or the losses say so.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from lyrics.core.contracts import Dataset
from lyrics.core.data.ledger import Ledger
from lyrics.core.data.sampler import StepSampler
from lyrics.core.data.stream import SampleStream
from lyrics.core.errors import SpecError, TrainingError
from lyrics.core.resolve import declaring
from lyrics.core.runs import checkpoint as checkpoints
from lyrics.core.runs.checkpoint import Checkpoint
from lyrics.core.runs.config import TrainConfig, digest
from lyrics.core.runs.disk import Disk
from lyrics.core.stage1.reduction import Flags, any_rank, peers_alive, together
from lyrics.core.trained import load_parameters
from lyrics.core.training import launch, resume
from lyrics.core.training.ahead import Ahead, ImagesToDevice
from lyrics.core.training.batches import MicroBatches, StepLoader, build_mixture, data_facts
from lyrics.core.training.early import Early, all_of, looks_ahead
from lyrics.core.training.engine import StageModule, StepEngine, compile_blocks
from lyrics.core.training.held_out import Evaluation
from lyrics.core.training.optimizer import build_optimizer, load_optimizer, optimizer_tensors
from lyrics.core.training.recorder import Recorder
from lyrics.core.training.report import write_report
from lyrics.core.training.runfolder import RunFolder
from lyrics.core.training.signals import StopRequest, stop_on_signals
from lyrics.core.training.writer import MAX_FAILURES, CheckpointWriter

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel
    from lyrics.core.training.sharding import Shards

#: Steps in a row that may be skipped for a loss or a gradient that is not finite.
MAX_SKIPPED = 5

Evaluate = Callable[[Any, int], Evaluation]


@dataclass(frozen=True)
class Outcome:
    """``step`` steps are finished; ``stopped`` says that a signal ended the run before its last one."""

    step: int
    stopped: bool


def train(
    config: TrainConfig,
    model: LyricsModel,
    datasets: Mapping[str, Dataset],
    collate: Callable[[list[Any]], Any],
    *,
    resume_from: str = "auto",
    evaluate: Evaluate | None = None,
    disk: Disk | None = None,
) -> Outcome:
    """Train a model through one stage, or go on doing so.

    On a CPU with a fixed number of threads and ranks the result does not depend on where the run was interrupted, to
    the bit.

    Args:
        config: of the run.
        model: is trained in place; under ``strategy: fsdp2`` the frozen weights of its language model are shared
            out in place.
        datasets: by the names of ``config.data.sets``.
        collate: examples -> one micro-batch; runs in loader workers.
        resume_from: ``auto``, ``never``, or the path of a checkpoint or a run folder.
        evaluate: called on all ranks as ``evaluate(model, step)``, in evaluation mode; what the first rank gets is
            recorded. Where ``model.shards`` is set, it calls ``model.shards.catch_up()`` before ranks exchange
            anything.
        disk: how checkpoints are written.

    Raises:
        SpecError: the configuration does not fit the ranks, the folder, or what was trained before.
        CheckpointError: a checkpoint cannot be used, or is of another run.
        TrainingError: the run cannot go on; its message says why and how to resume.
    """
    if config.evaluation.every_steps is not None and evaluate is None:
        raise SpecError("evaluation.every_steps: is set, but this run has nothing that evaluates; set it to null.")
    accelerator = launch.start(config, say)
    run = _Run(config, accelerator, model, datasets, collate, evaluate, disk or Disk())
    try:
        return run.go(resume_from)
    except BaseException as error:
        if run.writer is not None:
            # A save that was under way is finished: what stops the run says nothing against it.
            run.writer.wait()
        launch.let_go(error)
        raise
    finally:
        launch.release(accelerator)
        run.folder.close()


def say(text: str) -> None:
    """A line on the first rank's standard error."""
    if os.environ.get("RANK", "0") == "0":  # also before this process has joined the others
        sys.stderr.write(f"lyrics: {text}\n")


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: LyricsModel,
        datasets: Mapping[str, Dataset],
        collate: Callable[[list[Any]], Any],
        evaluate: Evaluate | None,
        disk: Disk,
    ) -> None:
        self.config, self.accelerator, self.model, self.evaluate, self.disk = config, accelerator, model, evaluate, disk
        self.folder = RunFolder(config.out)
        # What does not fit is refused before anything is written: here by the sampler and the mixture.
        check_negatives(config, self._batches(start=0).per_step)
        self.sharded = config.strategy == "fsdp2" and accelerator.num_processes > 1
        if self.sharded:
            from lyrics.core.training import sharding

            sharding.check_model(model, config.stage)
        mixture = build_mixture(config, datasets)
        self.facts = data_facts(config, mixture, datasets)
        self.stream = SampleStream(mixture, datasets, ledger=Ledger(self.folder.ledger_file))
        self.collate = collate
        self.writer: CheckpointWriter | None = None
        self.shards: Shards | None = None
        self.skipped_in_a_row = 0

    def _batches(self, start: int) -> MicroBatches:
        settings = self.config.optimization
        steps = StepSampler(
            settings.global_batch,
            start=start,
            stop=settings.steps,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
            group=self.config.data.group,
        )
        return MicroBatches(steps, settings.micro_batch)

    def go(self, resume_from: str) -> Outcome:
        device = self.accelerator.device
        with stop_on_signals() as request, peers_alive(f"the newest checkpoint in {self.folder.checkpoints}"):
            with together(device):
                if self.accelerator.is_main_process:
                    self.folder.open()
            chosen = resume.choose_together(self.folder.checkpoints, resume_from, say, device)
            found = None
            with together(device):
                if chosen is not None:
                    found = checkpoints.load(chosen)
                    resume.check_same_run(found, self.config, self.facts["digest"], str(chosen))
            start = 0 if found is None else found.step
            engine = self._engine(found, chosen)
            del found  # as large as what it was loaded into
            with together(device):
                if self.accelerator.is_main_process:
                    self._prepare_folder(start)
            outcome = self._steps(engine, start, request)
            self._finish(engine, outcome.step)
        if self.accelerator.is_main_process:
            write_report(self.folder, self.config, self.stream, outcome.step)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return outcome

    def _engine(self, found: Checkpoint | None, chosen: Path | None) -> StepEngine:
        trains_encoder = self.config.model.spec.train_image_encoder
        if trains_encoder and self.config.stage == "pretrain" and self.accelerator.num_processes > 1:
            raise SpecError(
                "model.spec.train_image_encoder: stage 1 trains the image encoder on one rank only, since no gradient "
                "flows back to the hard negatives of other ranks. Train it in stage 2, or on one rank."
            )
        self.model.train()
        parameters = dict(self.model.trainable_parameters(self.config.stage))
        asking = {id(one) for one in self.model.parameters() if one.requires_grad}
        assert asking == {id(one) for one in parameters.values()}, (
            "what is trained asks for gradients, and nothing else"
        )
        shards = self._share_out(parameters)
        optimizer = build_optimizer(parameters, self.config.optimization)
        bare = StageModule(self.model, self.config.stage, shards)
        if self.config.optimization.compile and not compile_blocks(bare):
            warnings.warn(
                "optimization.compile: no part of this model can be compiled; it has no effect.", stacklevel=2
            )
        with warnings.catch_warnings():
            # accelerate passes DDP an argument under the name that torch 2.13 has renamed; earlier releases know no
            # other.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            # What is shared out is not wrapped: the engine averages gradients.
            wrapped = self.accelerator.prepare_model(bare, evaluation_mode=shards is not None)
            prepared = self.accelerator.prepare_optimizer(optimizer)
        if found is not None and chosen is not None:
            load_parameters(parameters, found.trained, f"{chosen / checkpoints.TRAINED_FILE}")
            load_optimizer(optimizer, parameters, found.optimizer, f"{chosen / checkpoints.OPTIMIZER_FILE}")
            self.skipped_in_a_row = int(found.state["skipped_in_a_row"])
            say(f"going on from {chosen}, after {found.step} steps")
        return StepEngine(self.accelerator, bare, wrapped, prepared, parameters, self.config)

    def _share_out(self, parameters: Mapping[str, torch.nn.Parameter]) -> Shards | None:
        """Bring the model to the device: whole, or the language model in shares."""
        if not self.sharded:
            self.model.to(self.accelerator.device)
            return None
        from lyrics.core.training.sharding import Shards

        self.shards = Shards(self.model, parameters.values(), self.accelerator.device)
        return self.shards

    def _prepare_folder(self, start: int) -> None:
        folder = self.folder
        checkpoints.remove_leftovers(self.disk, folder.checkpoints)
        resume.set_aside_unusable(folder.checkpoints, start, say)
        folder.forget_after(start)
        environment = launch.environment(self.accelerator)
        folder.describe(self.config, self.facts, environment)
        facts = {"lyrics": environment["lyrics"], "packages": environment["packages"], "config": digest(self.config)}
        self.writer = CheckpointWriter(folder.checkpoints, self.config.checkpoint.keep, facts, say, self.disk)
        self.writer.saved_step = start
        self.accelerator.init_trackers("lyrics")

    def _steps(self, engine: StepEngine, start: int, request: StopRequest) -> Outcome:
        last = self.config.optimization.steps
        step = start
        device = self.accelerator.device
        gpu = device.type == "cuda"
        batches_of = self._batches(start)
        with self.accelerator.autocast():
            early = Early.of(self.collate, self.model, self.config)
        loader = StepLoader(self.stream, batches_of, early, self.config.data.workers, pinned=gpu)
        looks = looks_ahead(self.model, device, self.accelerator.autocast, say)
        meanwhile = all_of([*([] if looks is None else [looks]), early.with_texts])
        sender = ImagesToDevice(iter(loader), device, meanwhile) if gpu else None
        ahead = Ahead(iter(loader if sender is None else sender))
        with Recorder(self.folder, self.accelerator, self.config, start) as recorder:
            began = time.perf_counter()
            for batches, waited_s in ahead:
                if sender is not None:
                    sender.arrived(batches)
                flags = Flags(request.asked, self._saves_fail())
                # A GPU goes on with this step while the next one's batches are fetched, sent and looked at.
                result = engine(step, batches, flags, ahead.fetch if gpu else None)
                step += 1
                recorder.step(step, result, batches, time.perf_counter() - began, waited_s)
                self.skipped_in_a_row = self.skipped_in_a_row + 1 if result.skipped else 0
                if result.saves_failed:
                    cause = f": {self.writer.last_error}" if self.writer is not None else "; the first rank says why"
                    raise TrainingError(
                        f"{MAX_FAILURES} saves in a row failed{cause}. Earlier checkpoints are whole: make room, and "
                        "resume."
                    )
                if self.skipped_in_a_row >= MAX_SKIPPED:
                    raise TrainingError(
                        f"{MAX_SKIPPED} steps in a row, up to step {step}, had a loss or a gradient that was not "
                        f"finite; {self.folder.anomalies_file} names their samples. Look at these, or lower "
                        "optimization.learning_rate, and resume."
                    )
                self._evaluate_when_due(step, recorder)
                if result.stop and step < last:
                    say(f"asked to stop after step {step}; saving")
                    return Outcome(step, stopped=True)
                self._save_when_due(engine, step)
                began = time.perf_counter()
        return Outcome(step, stopped=False)

    def _evaluate_when_due(self, step: int, recorder: Recorder) -> None:
        every = self.config.evaluation.every_steps
        if every is None or self.evaluate is None or (step % every and step < self.config.optimization.steps):
            return
        self.model.eval()
        with torch.no_grad(), contextlib.nullcontext() if self.shards is None else self.shards.evaluating():
            found = self.evaluate(self.model, step)
        self.model.train()
        recorder.evaluation(step, found)

    def _save_when_due(self, engine: StepEngine, step: int) -> None:
        if self.writer is None:
            return
        settings = self.config.checkpoint
        by_step = settings.every_steps is not None and step % settings.every_steps == 0
        minutes = (time.monotonic() - self.writer.saved_when) / 60
        if by_step or (settings.every_minutes is not None and minutes >= settings.every_minutes):
            self._save(engine, step)

    def _save(self, engine: StepEngine, step: int) -> None:
        assert self.writer is not None
        state = resume.state_of(self.config, step, self.facts["digest"], self.skipped_in_a_row)
        self.writer.save(engine.parameters, optimizer_tensors(engine.optimizer, engine.parameters), state)

    def _saves_fail(self) -> bool:
        if self.writer is None:
            return False
        self.writer.poll()
        return self.writer.failures >= MAX_FAILURES

    def _finish(self, engine: StepEngine, step: int) -> None:
        """The last save, and everybody's agreement that it is on disk."""
        if self.writer is not None:
            self.writer.wait()
            if self.writer.failures or self.writer.saved_step < step:
                self._save(engine, step)
                self.writer.wait()
        if any_rank(self.writer is not None and self.writer.failures > 0, self.accelerator.device):
            cause = f": {self.writer.last_error}" if self.writer is not None else "; the first rank says why"
            raise TrainingError(
                f"the checkpoint of step {step} could not be written{cause}. Make room, and resume from the one before."
            )


def check_negatives(config: TrainConfig, micro_batches: int) -> None:
    """Raise ``SpecError`` for several micro-batches with a contrastive loss.

    A configuration may accept their smaller number of negatives.
    """
    contrastive = [path.partition(".")[2] for path in declaring(config.model.spec, "compares_across_batch")]
    accepted = config.optimization.itc_negatives == "micro-batch"
    if config.stage == "pretrain" and micro_batches > 1 and contrastive and not accepted:
        raise SpecError(
            f"optimization.micro_batch={config.optimization.micro_batch} makes {micro_batches} micro-batches of a "
            f"step, but the loss {contrastive[0]!r} compares every sample with every other of the step, and is no sum "
            "over micro-batches. Use more ranks, a smaller optimization.global_batch, or "
            "model.spec.query_transformer.options.gradient_checkpointing=true; or accept the negatives of each "
            "micro-batch alone with optimization.itc_negatives=micro-batch."
        )
