"""``build_model`` from end to end, on a model small enough to be built a hundred times."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import lyrics
from lyrics.core.build import build_part, check_requirements
from lyrics.core.contracts import BuildContext
from lyrics.core.errors import (
    ImageError,
    MissingRequirementError,
    PluginError,
    SpecError,
    UnknownNameError,
    WeightsError,
    WiringError,
)
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.registry.component import Component, Options, hookimpl
from lyrics.core.registry.registry import Registry
from lyrics.core.resolve import resolve
from lyrics.core.spec import dump
from lyrics.core.types import Preprocessing
from tests.core.small import drawn, small

EXPERTS = ("encoder", "refiner.tagger", "refiner.detector", "refiner.segmenter")


def random_model(**overrides: object) -> LyricsModel:
    torch.manual_seed(0)
    return build_model(small(**overrides), weights="random")


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    return random_model().eval()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# --- what comes out ---


def test_the_parts_are_where_the_design_says(model: LyricsModel) -> None:
    for name in (*EXPERTS, "query_transformer", "language_model", "projection"):
        assert isinstance(model.get_submodule(name), nn.Module)
    assert model.processor.preprocessing["detector"] == model.refiner.detector.preprocessing  # type: ignore[union-attr]
    assert model.spec.distributions["image_encoder"].startswith("lyrics-vl ")
    assert model.projection.in_features == model.query_transformer.hidden_size
    assert model.projection.out_features == model.language_model.hidden_size


def test_a_picture_goes_through_it(model: LyricsModel, no_network: None) -> None:
    encoded = model.encode([drawn(), drawn(40, 90)], ["what is this?", ""], phrases=[["red circle"], []])
    assert encoded.soft_tokens_PQD.shape == (2, model.query_transformer.num_queries, model.language_model.hidden_size)
    assert torch.isfinite(encoded.soft_tokens_PQD).all()
    assert [refinement.size_px for refinement in encoded.refinements] == [(96, 64), (40, 90)]
    answers = model.generate([drawn()], ["what is this?"], max_new_tokens=4)
    assert len(answers) == 1
    assert isinstance(answers[0].text, str)


def test_no_pictures_are_normal(model: LyricsModel) -> None:
    assert model.encode([], []).soft_tokens_PQD.shape[0] == 0
    assert model.generate([], []) == []


def test_picture_is_answered_the_same_in_any_company(model: LyricsModel) -> None:
    together = model.encode([drawn(), drawn(color="blue")], ["one", "two and more"]).soft_tokens_PQD
    alone = model.encode([drawn(color="blue")], ["two and more"]).soft_tokens_PQD
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)


def test_instruction_and_picture_reach_the_soft_tokens(model: LyricsModel) -> None:
    encoded = model.encode([drawn()] * 2 + [drawn(color="blue")], ["one", "two", "one"]).soft_tokens_PQD
    assert not torch.allclose(encoded[0], encoded[1])
    assert not torch.allclose(encoded[0], encoded[2])


def test_counts_must_match(model: LyricsModel) -> None:
    with pytest.raises(ValueError, match="2 images need as many instructions, not 1"):
        model.encode([drawn(), drawn()], ["one"])
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        model.encode(["nowhere.png"], ["one"])


def test_model_without_a_refiner_or_with_part_of_one() -> None:
    for overrides in ({"refiner": None}, {"refiner__tagger": None}, {"refiner__segmenter": None}):
        built = random_model(**overrides).eval()
        assert built.encode([drawn()], ["what?"]).soft_tokens_PQD.shape[0] == 1
    bare = random_model(refiner=None)
    assert bare.refiner is None
    assert set(bare.processor.preprocessing) == {"image_encoder"}


def test_objectives_are_built_for_the_query_transformers_width() -> None:
    built = random_model(objectives={"itc": "itc", "match": "itm"})
    assert list(built.objectives) == ["itc", "match"]
    assert all(isinstance(objective, nn.Module) for objective in built.objectives.values())


@pytest.mark.parametrize("name", ["train", "keys", "to"])
def test_name_that_torch_keeps_for_itself_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match=rf"^objectives\.{name}: .* write objectives\.{name}-loss"):
        random_model(objectives={name: "itc"})
    assert list(random_model(objectives={f"{name}-loss": "itc"}).objectives) == [f"{name}-loss"]


# --- random, meta, device, dtype ---


def test_random_needs_no_network(no_network: None) -> None:
    build_model(small(), weights="random")


def test_random_follows_the_seed() -> None:
    first, second = random_model(), random_model()
    torch.manual_seed(1)
    third = build_model(small(), weights="random")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.projection.weight, third.projection.weight)


def test_meta_has_shapes_and_no_memory(no_network: None, model: LyricsModel) -> None:
    built = build_model(small(), weights="meta")
    assert all(parameter.is_meta for parameter in built.parameters())
    shapes = {name: parameter.shape for name, parameter in built.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in model.named_parameters()}
    # The default device is as before.
    assert not torch.zeros(1).is_meta


def test_meta_model_of_the_paper_costs_no_memory(no_network: None) -> None:
    """13 billion parameters; 26 GB in bfloat16."""
    built = build_model("lyrics-13b", overrides={"objectives": {}}, weights="meta", dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in built.parameters()) > 13e9
    assert all(tensor.is_meta for tensor in built.parameters())
    held = sum(t.numel() * t.element_size() for t in (*built.parameters(), *built.buffers()) if not t.is_meta)
    assert held < 10_000_000


def test_meta_with_a_device_is_a_contradiction() -> None:
    with pytest.raises(ValueError, match=r"weights='meta' allocates nothing, so device='cpu' cannot be met"):
        build_model(small(), weights="meta", device="cpu")


def test_device_is_where_the_parameters_are() -> None:
    built = build_model(small(), weights="random", device="cpu")
    assert built.device == torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_that_of_every_parameter_and_runs(dtype: torch.dtype) -> None:
    built = build_model(small(), weights="random", dtype=dtype).eval()
    # PEFT keeps LoRA's own matrices in float32 where the model is in half precision.
    assert {parameter.dtype for name, parameter in built.named_parameters() if "lora_" not in name} == {dtype}
    encoded = built.encode([drawn()], ["what?"], phrases=[["red circle"]])
    assert encoded.soft_tokens_PQD.dtype == dtype
    assert torch.isfinite(encoded.soft_tokens_PQD).all()
    assert torch.get_default_dtype() == torch.float32


def test_dtype_must_be_floating_point() -> None:
    with pytest.raises(ValueError, match=r"dtype=torch\.int8 is not a floating-point type"):
        build_model(small(), weights="random", dtype=torch.int8)
    assert torch.get_default_dtype() == torch.float32


def test_default_dtype_comes_back_when_a_build_fails() -> None:
    with pytest.raises(PluginError):
        build_model(small(), overrides={"refiner.detector": "acme"}, weights="random", dtype=torch.float64,
                    registry=with_part("detector", built=None))  # fmt: skip
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(("weights", "hint"), [("randm", "random"), ("pretraind", "pretrained"), ("mta", "meta")])
def test_misspelled_weights_get_a_hint(weights: str, hint: str) -> None:
    with pytest.raises(WeightsError, match=f"weights='{weights}' is neither .* Did you mean '{hint}'"):
        build_model(small(), weights=weights)


def test_weights_are_judged_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lyrics.core.build._construct", lambda *_, **__: pytest.fail("something was built"))
    with pytest.raises(WeightsError):
        build_model(small(), weights="/no/such/folder")


def test_parts_are_wired_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lyrics.core.build._construct", lambda *_, **__: pytest.fail("something was built"))
    with pytest.raises(WiringError):
        build_model(small(query_transformer__options__image_dim=3), weights="random")


# --- frozen ---


def frozen_parameters(built: LyricsModel) -> dict[str, nn.Parameter]:
    return {f"{e}.{n}": p for e in EXPERTS for n, p in built.get_submodule(e).named_parameters()}


def test_experts_stay_frozen_through_train() -> None:
    built = random_model()
    assert built.train() is built
    for expert in EXPERTS:
        module = built.get_submodule(expert)
        assert not any(part.training for part in module.modules()), f"{expert} went into training mode"
        assert not any(parameter.requires_grad for parameter in module.parameters()), f"{expert} asks for gradients"
    assert built.query_transformer.training
    assert built.projection.training
    assert built.language_model.training
    built.eval()
    assert not any(part.training for part in built.modules())


def test_an_optimizer_over_what_is_trainable_never_touches_an_expert() -> None:
    built = random_model().train()
    frozen = frozen_parameters(built)
    assert frozen
    before = {name: parameter.clone() for name, parameter in frozen.items()}
    trainable = [parameter for parameter in built.parameters() if parameter.requires_grad]
    assert not {id(parameter) for parameter in trainable} & {id(parameter) for parameter in frozen.values()}
    moved = [parameter.clone() for parameter in trainable]
    optimizer = torch.optim.AdamW(trainable, lr=0.1)
    encoded = built.encode([drawn()], ["what?"], phrases=[["red circle"]])
    encoded.soft_tokens_PQD.square().mean().backward()
    optimizer.step()
    assert all(torch.equal(frozen[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in frozen.values())
    assert any(not torch.equal(now, then) for now, then in zip(trainable, moved, strict=True))


def test_experts_see_no_gradient_and_no_dropout(model: LyricsModel) -> None:
    built = random_model().train()
    images = built.processor.images([drawn()])
    (first, _), (second, _) = built.features(images), built.features(images)
    assert not first.image_tokens_BND.requires_grad
    assert torch.equal(first.image_tokens_BND, second.image_tokens_BND)


# --- folders ---


def test_model_comes_back_from_its_folder(model: LyricsModel, tmp_path: Path, no_network: None) -> None:
    model.save_pretrained(tmp_path / "new" / "folder")
    again = lyrics.LyricsModel.from_pretrained(tmp_path / "new" / "folder")
    assert again.spec == model.spec
    assert again.spec.distributions == resolve(small()).spec.distributions
    ours, theirs = model.state_dict(), again.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    arguments: Any = ([drawn()], ["what?"])
    assert torch.equal(model.encode(*arguments).soft_tokens_PQD, again.eval().encode(*arguments).soft_tokens_PQD)
    written = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert written == ["licenses.json", "model.safetensors", "parts", "preprocessing.json", "spec.json", "tokenizers"]


def test_folder_may_be_given_as_weights(model: LyricsModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = build_model(small(), weights=tmp_path)
    assert torch.equal(again.projection.weight, model.projection.weight)
    half = LyricsModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(half.projection.weight, model.projection.weight.to(torch.bfloat16))


def test_saving_again_replaces_what_was_there(model: LyricsModel, tmp_path: Path) -> None:
    random_model(refiner=None).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert LyricsModel.from_pretrained(tmp_path).spec == model.spec


def test_meta_model_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="a model built with weights='meta' has no values to save"):
        build_model(small(), weights="meta").save_pretrained(tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_tensors_that_do_not_fit_are_named(model: LyricsModel, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["projection.wait"] = tensors.pop("projection.weight")
    tensors["projection.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        LyricsModel.from_pretrained(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "model.safetensors") in message
    assert "1 missing: projection.weight" in message
    assert "1 unexpected: projection.wait" in message
    assert f"1 of another shape: projection.bias (3,), not ({model.projection.out_features},)" in message


@pytest.mark.parametrize("fault", ["truncated", "garbage", "empty", "absent", "pickle"])
def test_damaged_weights_name_the_file(fault: str, model: LyricsModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if fault == "absent":
        file.unlink()
    elif fault == "pickle":
        torch.save({"projection.weight": model.projection.weight}, file)
    else:
        data = file.read_bytes()
        file.write_bytes({"truncated": data[: len(data) // 2], "garbage": b"\xff" * 4096, "empty": b""}[fault])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        LyricsModel.from_pretrained(tmp_path)


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"is neither a model folder \(it has no spec\.json\)"):
        LyricsModel.from_pretrained(tmp_path)
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(SpecError, match=r"spec\.json"):
        LyricsModel.from_pretrained(tmp_path)


def test_model_of_another_version_loads_with_a_warning(model: LyricsModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    dump(model.spec.with_overrides({"distributions.image_encoder": "lyrics-vl 0.0.1"}), tmp_path / "spec.json")
    with pytest.warns(UserWarning, match=r"image_encoder was written for lyrics-vl 0\.0\.1"):
        LyricsModel.from_pretrained(tmp_path)


# --- strangers' parts ---


def with_part(kind: str, built: Any, **record: Any) -> Registry:
    """A registry with the component ``acme`` whose build returns ``built``, or calls it."""
    global make
    make = built if callable(built) and not isinstance(built, nn.Module) else lambda options, context: built

    class Plugin:
        @hookimpl
        def lyrics_components(self) -> Iterable[Component]:
            yield Component(kind, "acme", **{"build": f"{__name__}:make", **record})  # type: ignore[arg-type]

    return Registry.discover(Plugin())


make: Any = None


class Stub(nn.Module):
    def __init__(self, **declared: Any) -> None:
        super().__init__()
        for name, value in declared.items():
            setattr(self, name, value)


SQUARE = Preprocessing("squash", 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.filterwarnings("ignore:.*reads no local tokens")
@pytest.mark.parametrize(
    ("kind", "built", "complaint"),
    [
        ("image-encoder", Stub(preprocessing=SQUARE), "feature_dim must be a positive int, not None"),
        ("image-encoder", Stub(feature_dim=0, preprocessing=SQUARE), "feature_dim must be a positive int, not 0"),
        ("image-encoder", Stub(feature_dim=4), "preprocessing must be a Preprocessing, not None"),
        ("detector", Stub(feature_dim="4", preprocessing=SQUARE), "feature_dim must be a positive int, not '4'"),
        ("tagger", Stub(preprocessing={}), "preprocessing must be a Preprocessing, not {}"),
        (
            "query-transformer",
            Stub(hidden_size=4, num_queries=1, max_positions=1),
            "segments must be a tuple, not None",
        ),
        ("language-model", Stub(hidden_size=4, max_positions=8), "adaptation must be a str, not None"),
        ("query-transformer", Stub(hidden_size=4, num_queries=1, segments=("V",)), "it has no project."),
        (
            "query-transformer",
            Stub(hidden_size=4, num_queries=1, segments=("V", "C"), project=len, max_positions=9, tokenizer=""),
            "it has no token_logits.",
        ),
        (
            "query-transformer",
            Stub(hidden_size=4, num_queries=1, segments=("G",), project=len),
            "segments must be V and",
        ),
        ("query-transformer", object(), "it is a object, not a torch.nn.Module."),
    ],
)
def test_part_that_does_not_declare_what_its_kind_promises(kind: str, built: Any, complaint: str) -> None:
    path = {"tagger": "refiner.tagger", "detector": "refiner.detector"}.get(kind, kind.replace("-", "_"))
    with pytest.raises(PluginError) as caught:
        build_model(small(), overrides={path: "acme"}, weights="random", registry=with_part(kind, built))
    assert complaint in str(caught.value)
    assert f"{path}: {kind} 'acme' of Plugin in-process (entry point 'Plugin')" in str(caught.value)


class _WideOptions(Options):
    feature_dim: int = 7


def test_part_without_a_width_may_have_an_option_of_that_name() -> None:
    registry = with_part("tagger", Stub(preprocessing=SQUARE), options=_WideOptions)
    part = resolve(small(), {"refiner.tagger": "acme"}, registry=registry).parts["refiner.tagger"]
    build_part(part, BuildContext("random"))


def test_width_that_only_the_built_part_knows_is_compared_too() -> None:
    registry = with_part("detector", Stub(feature_dim=4, preprocessing=SQUARE))
    pinned = {"query_transformer.options.local_dims": {"detector": 5, "segmenter": 12}}
    with pytest.raises(WiringError, match=r"'acme' gives feature_dim 4, but .* is set to read 5; set .*\.detector=4"):
        build_model(small(), overrides={"refiner.detector": "acme", **pinned}, weights="random", registry=registry)


def test_failing_build_keeps_its_cause() -> None:
    def fails(options: Any, context: Any) -> Any:
        raise ZeroDivisionError("by zero")

    with pytest.raises(PluginError, match=r"failed while it was built: ZeroDivisionError: by zero\.") as caught:
        build_model(
            small(), overrides={"refiner.tagger": "acme"}, weights="random", registry=with_part("tagger", fails)
        )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_interrupting_a_build_interrupts() -> None:
    def interrupts(options: Any, context: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_model(
            small(), overrides={"refiner.tagger": "acme"}, weights="random", registry=with_part("tagger", interrupts)
        )


@pytest.mark.parametrize("build", ["no_such_package.module:make", "tests.core.test_build:no_such_name", "json:load.no"])
def test_build_that_cannot_be_imported_names_the_versions(build: str) -> None:
    registry = with_part("tagger", None, build=build)
    with pytest.raises(PluginError, match=r"installed but failed to import with torch .*, transformers .*: "):
        build_model(small(), overrides={"refiner.tagger": "acme"}, weights="random", registry=registry)


def test_unmet_requirement_gives_the_command() -> None:
    registry = with_part("tagger", None, requires=("acme-engine>=2", "zeta"), install="pip install acme[all]")
    with pytest.raises(MissingRequirementError) as caught:
        build_model(small(), overrides={"refiner.tagger": "acme"}, weights="random", registry=registry)
    assert "needs acme-engine>=2 (not installed), zeta (not installed). Run: pip install acme[all]" in str(caught.value)
    part = resolve(
        small(), {"refiner.tagger": "acme"}, registry=with_part("tagger", None, requires=("a>=2", "b"))
    ).parts
    with pytest.raises(MissingRequirementError, match=r"Run: pip install 'a>=2' 'b'"):
        check_requirements(part["refiner.tagger"])


@pytest.mark.filterwarnings("ignore:.*reads no local tokens")
def test_context_tells_the_query_transformer_what_it_will_read() -> None:
    contexts: list[BuildContext] = []

    def records(options: Any, context: BuildContext) -> Any:
        contexts.append(context)
        raise RuntimeError("enough")

    with pytest.raises(PluginError):
        build_model(small(), overrides={"query_transformer": "acme"}, weights="random",
                    registry=with_part("query-transformer", records))  # fmt: skip
    built = SimpleNamespace(**{e.rpartition(".")[2]: random_model().get_submodule(e) for e in EXPERTS})
    assert contexts[0].image_dim == built.encoder.feature_dim
    assert list(contexts[0].local_dims.items()) == [
        ("detector", built.detector.feature_dim),
        ("segmenter", built.segmenter.feature_dim),
    ]
    assert contexts[0].weights == "random"


def test_unknown_part_is_a_spec_error_not_a_plugin_error() -> None:
    with pytest.raises(UnknownNameError):
        build_model(small(), overrides={"refiner.detector": "acme"}, weights="random")


def test_a_build_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)  # transformers' own
        random_model()
