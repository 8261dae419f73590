"""A run from outside: what it leaves, what it measures, what it never touches."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

from lyrics.core.data.collate import PretrainExamples
from lyrics.core.errors import MissingRequirementError, SampleError, SpecError, TrainingError
from lyrics.core.loading import build_model
from lyrics.core.runs.checkpoint import finished
from lyrics.core.runs.config import load_config
from lyrics.core.spec import load
from lyrics.core.stage1.reduction import total_loss
from lyrics.core.stage1.state import Loss
from lyrics.core.training import recorder
from lyrics.core.training.held_out import Evaluation
from lyrics.core.training.loop import Outcome, train
from lyrics.core.training.progress import StepProgress
from lyrics.core.training.report import curve
from lyrics.core.types import Sample
from tests.core.training.runs import FaultyDisk, losses, run, trained
from tests.core.training.standin import COLLATE, Numbers, StandIn, config, fingerprint


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_the_run_folder(tmp_path: Path) -> None:
    settings = config(tmp_path)
    assert run(settings) == Outcome(12, stopped=False)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.yaml", "spec.json", "data.json", "environment.json", "log.jsonl", "report.html"),
        *("checkpoints", ".lock"),
    }
    assert load_config(tmp_path / "config.yaml") == settings
    assert load(tmp_path / "spec.json") == settings.model.spec
    assert json.loads((tmp_path / "data.json").read_text())["sets"]["numbers"]["rows"] == 97
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert (environment["ranks"], environment["packages"]["torch"]) == (1, torch.__version__)
    first, *_, last = lines(tmp_path)
    assert (first["step"], last["step"]) == (1, 12)
    assert float.fromhex(first["exact"]["icg"]) == first["losses"]["icg"]
    assert first["losses"]["total"] == pytest.approx(first["losses"]["icg"] + 0.5 * first["losses"]["msp"])
    assert 0 <= first["wait_s"] <= first["step_s"]
    assert last["lr"] < first["lr"]


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_it_learns_and_leaves_frozen_weights_alone(tmp_path: Path, stage: str) -> None:
    """T11: after 100 steps the frozen weights are the same to the bit, and the optimizer holds nothing about them."""
    model = StandIn()
    trainable = set(model.trainable_parameters(stage))
    frozen = {name: parameter for name, parameter in model.named_parameters() if name not in trainable}
    assert frozen
    before = fingerprint(frozen)
    moving = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if name in trainable}
    run(config(tmp_path, stage, optimization__steps=100), model=model)
    assert fingerprint(frozen) == before
    assert all(not torch.equal(moving[name], dict(model.named_parameters())[name]) for name in trainable)
    newest = max(finished(tmp_path / "checkpoints"))
    manifest = json.loads((newest / "manifest.json").read_text())
    assert set(manifest["files"]) == {"trainable.safetensors", "optim.safetensors", "state.json"}
    with safe_open(newest / "optim.safetensors", "pt") as file:
        assert {name.rpartition("/")[0] for name in file.keys()} == trainable  # noqa: SIM118
    with safe_open(newest / "trainable.safetensors", "pt") as file:
        assert set(file.keys()) == trainable
    found = [line["losses"]["total"] for line in lines(tmp_path)]
    assert sum(found[-20:]) < 0.95 * sum(found[:20])


def test_a_parameter_that_asks_for_a_gradient_unasked_is_a_fault(tmp_path: Path) -> None:
    class Leaky(StandIn):
        def trainable_parameters(self, stage: str):
            found = super().trainable_parameters(stage)
            self.encoder.weight.requires_grad_(True)
            return found

    with pytest.raises(AssertionError, match="asks for gradients, and nothing else"):
        run(config(tmp_path), model=Leaky())


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(config(tmp_path / name, seed=seed))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert trained(tmp_path / "a") == trained(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


def test_dropout_differs_from_step_to_step(tmp_path: Path) -> None:
    """One sample, and updates too small to matter: only the masks make the losses differ."""

    class One(Numbers):
        def __getitem__(self, index: int) -> Sample:
            return super().__getitem__(4)

    settings = config(tmp_path, optimization__learning_rate=1e-30, optimization__global_batch=1)
    train(settings, StandIn(dropout=0.5), {"numbers": One(1)}, COLLATE["pretrain"])
    assert len({exact["icg"] for _, exact in losses(tmp_path)}) == 12


def moments(out: Path, step: int) -> dict[str, torch.Tensor]:
    """Adam's first moments; after the first step a tenth of the gradient."""
    tensors = load_file(out / "checkpoints" / f"step-{step:08d}" / "optim.safetensors")
    return {name.removesuffix("/exp_avg"): tensor for name, tensor in tensors.items() if name.endswith("/exp_avg")}


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    for clip_norm in (1e-3, 1e3):
        out = tmp_path / f"{clip_norm}"
        run(config(out, optimization__steps=1, optimization__clip_norm=clip_norm))
        norm = torch.cat([tensor.flatten() for tensor in moments(out, 1).values()]).norm().item() * 10
        assert norm == pytest.approx(min(clip_norm, lines(out)[0]["gradient_norm"]), rel=1e-3)


def test_a_loss_counts_with_its_weight(tmp_path: Path) -> None:
    for weight in (0.0, 0.5, 1.0):
        changes = {"model__spec__objectives__msp__weight": weight, "optimization__clip_norm": 1e9}
        run(config(tmp_path / f"{weight}", optimization__steps=1, **changes))
    none, half, whole = (moments(tmp_path / f"{weight}", 1)["extra"] for weight in (0.0, 0.5, 1.0))
    assert not none.any()
    assert whole.any()
    assert torch.allclose(2 * half, whole)


def test_evaluation_is_called_recorded_and_leaves_no_trace(tmp_path: Path) -> None:
    called = []

    def evaluate(model: StandIn, step: int) -> Evaluation:
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(step)  # a careless one: draws from the global generator
        called.append(step)
        return Evaluation({"accuracy": step / 100})

    run(config(tmp_path / "a", evaluation__every_steps=5), evaluate=evaluate)
    assert called == [5, 10, 12]
    found = {line["step"]: line["evaluation"] for line in lines(tmp_path / "a") if "evaluation" in line}
    assert found == {5: {"accuracy": 0.05}, 10: {"accuracy": 0.1}, 12: {"accuracy": 0.12}}
    run(config(tmp_path / "b"))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert "0.12 (step 12)" in (tmp_path / "a" / "report.html").read_text()


def test_evaluation_without_anything_that_evaluates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nothing that evaluates"):
        run(config(tmp_path, evaluation__every_steps=5))


def test_one_failed_save_does_not_stop_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """T4: the third call of the second save fails."""
    counted = FaultyDisk()
    run(config(tmp_path / "a"), disk=counted)
    run(config(tmp_path / "b"), disk=FaultyDisk(at=counted.calls // 3 + 5, how="ENOSPC"))
    assert "save step 8: failed, and training goes on from memory: [Errno 28]" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "b" / "checkpoints").iterdir()} == {"step-00000004", "step-00000012"}
    assert trained(tmp_path / "b") == trained(tmp_path / "a")


def test_a_disk_that_stays_full_stops_the_run_and_spares_the_last_checkpoint(tmp_path: Path) -> None:
    run(config(tmp_path))
    kept = trained(tmp_path)
    longer = config(tmp_path, optimization__steps=1000)
    with pytest.raises(TrainingError, match=r"2 saves in a row failed: \[Errno 28\].*make room, and resume"):
        run(longer, disk=FaultyDisk(at=1, how="ENOSPC", lasting=True))
    assert trained(tmp_path) == kept
    assert not list((tmp_path / "checkpoints").glob("*.tmp-*"))


def test_a_last_save_that_fails_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the checkpoint of step 12 could not be written"):
        run(config(tmp_path, checkpoint__every_steps=None), disk=FaultyDisk(at=1, how="EIO", lasting=True))


def test_saves_by_the_clock(tmp_path: Path) -> None:
    run(config(tmp_path, checkpoint__every_steps=None, checkpoint__every_minutes=1e-9, checkpoint__keep=100))
    assert len(finished(tmp_path / "checkpoints")) == 12


def test_bad_samples_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Bad(Numbers):
        def __getitem__(self, index: int) -> Sample:
            if index % 10 == 3:
                raise SampleError(f"row {index} is bad", "record")
            return super().__getitem__(index)

    monkeypatch.setattr(recorder, "_LEDGER_EVERY_S", 0.0)
    train(config(tmp_path, data__workers=1), StandIn(), {"numbers": Bad()}, COLLATE["pretrain"])
    rows = {json.loads(line)["row"] for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()}
    assert rows
    assert all(row % 10 == 3 for row in rows)
    assert f"{len(rows)} bad samples" in capsys.readouterr().err


def test_compiling_needs_no_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks that say so are compiled (here by a backend that runs them as they are) and checkpoints stay
    interchangeable.
    """
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    original = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, dynamic: original(self, backend=backend, dynamic=dynamic)
    )
    run(config(tmp_path / "run", optimization__steps=2, optimization__compile=True))
    assert compiled
    assert run(config(tmp_path / "run", optimization__steps=4)).step == 4

    model = StandIn()
    model.trunk.compiled_alone = False
    with pytest.warns(UserWarning, match="no part of this model can be compiled"):
        run(config(tmp_path / "none", optimization__steps=1, optimization__compile=True), model=model)


def test_bf16_computes_in_half_and_keeps_weights_whole_and_the_next_run_is_as_it_asks(tmp_path: Path) -> None:
    seen = []

    class Seeing(StandIn):
        def _words(self, *args, **kwargs):
            seen.append(self.trunk(torch.zeros(1, 16)).dtype)
            seen.append((torch.zeros(2, 2) @ torch.zeros(2, 2)).dtype)
            return super()._words(*args, **kwargs)

    model = Seeing(dropout=0.0)
    run(config(tmp_path / "bf16", optimization__precision="bf16"), model=model)
    assert torch.bfloat16 in seen
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    run(config(tmp_path / "fp32"), model=StandIn(dropout=0.0))
    for (_, half), (_, whole) in zip(losses(tmp_path / "bf16"), losses(tmp_path / "fp32"), strict=True):
        assert half["icg"] != whole["icg"]
        assert float.fromhex(half["icg"]) == pytest.approx(float.fromhex(whole["icg"]), rel=0.05)


# --- what people see ---


def test_a_missing_tensorboard_is_a_line_and_a_missing_wandb_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("tensorboard", "wandb") else original(name, *rest),
    )
    run(config(tmp_path / "a", logging__trackers=["tensorboard"]))
    assert capsys.readouterr().err.count("tensorboard is not installed") == 1
    with pytest.raises(MissingRequirementError, match="pip install wandb"):
        run(config(tmp_path / "b", logging__trackers=["wandb"]))


def test_the_bar_says_what_matters() -> None:
    console = Console(force_terminal=True, width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    bar = StepProgress(100, 40, console)
    bar.start()
    bar.update(50, {"itc": 1.25, "icg": 3.5}, 1e-4, 12.34, skipped=2, bad_samples=7)
    bar.bar.refresh()
    bar.stop()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.export_text())
    for part in (
        "50/100",
        "itc 1.250",
        "icg 3.500",
        "lr 1.00e-04",
        "12.3 samples/s",
        "2 steps skipped",
        "7 bad samples",
    ):
        assert part in text, part


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_report_stands_alone(tmp_path: Path) -> None:
    run(config(tmp_path / "a <b>"))
    text = (tmp_path / "a <b>" / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert "<h1>a &lt;b&gt;</h1>" in text
    assert [tag for tag, _ in page.tags].count("polyline") == 3, "total and two losses"
    pictures = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 6
    assert all(source is not None and source.startswith("data:image/jpeg;base64,") for source in pictures)
    assert not re.search(r"(?:src|href)='?\"?(?:https?:|/)", text), "nothing is fetched"
    assert "12 of 12" in text
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}


def test_curves() -> None:
    text = curve([(1, 4.0), (2, float("nan")), (3, 2.0)])
    (points,) = re.findall(r"polyline points='([^']*)'", text)
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points.split())
    assert x1 < x2
    assert y1 < y2, "a smaller loss is lower down"
    assert curve([(1, float("inf"))]) == "<p>no finite value</p>"
    many = curve([(step, 1.0) for step in range(10_000)])
    assert len(re.findall(r"polyline points='([^']*)'", many)[0].split()) <= 400


def test_build_model_has_the_interface_that_training_uses() -> None:
    """The stand-in stands for this."""
    model = build_model("lyrics-tiny", weights="meta")
    for name in ("pretraining_step", "instruction_step", "trainable_parameters"):
        assert callable(getattr(model, name)), name


def test_training_sums_losses_as_total_loss_does(tmp_path: Path) -> None:
    """What the parity tests prove is what is trained, weights included."""
    seen = []

    class Watched(StandIn):
        def pretraining_step(self, batch: PretrainExamples, *, seed: int, step: int) -> dict[str, Loss]:
            seen.append(batch)
            return super().pretraining_step(batch, seed=seed, step=step)

    run(config(tmp_path, optimization__steps=1, optimization__clip_norm=1e9), model=Watched(dropout=0.0))
    model = StandIn(dropout=0.0)
    parameters = model.trainable_parameters("pretrain").values()
    found = model.pretraining_step(seen[0], seed=0, step=0)
    assert found["msp"].count
    total, means = total_loss(found, {"icg": 1.0, "msp": 0.5})
    total.backward()
    norm = float(torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None]))
    (line,) = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line["losses"]["total"] == pytest.approx(float(total), rel=1e-6)
    assert line["losses"]["msp"] == pytest.approx(float(means["msp"]), rel=1e-6)
    assert line["gradient_norm"] == pytest.approx(norm, rel=1e-6)
