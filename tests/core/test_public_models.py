"""Public models: what tells them, what is checked before a tensor is read, and what overrides make of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lyrics
from lyrics import PublicModel, hookimpl
from lyrics.core.errors import CheckpointError, PluginError, WeightsError
from lyrics.core.public_models import find_public, load_public
from lyrics.core.registry.registry import AmbiguousNameError, PluginSource, Registry
from lyrics.core.trained import start_from
from lyrics.core.weights.pieces import SourceCheckpoint
from tests.plugins import public_checkpoints as public
from tests.plugins.public_checkpoints import photograph, save_llava

HUB_ID = "acme/llava-small"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    save_llava(folder)
    return folder


@pytest.fixture
def llava(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "llava"))


class Hub:
    """A hub with one repository, which notes what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[tuple[str, ...]]()

    def __call__(self, name: str, *, allow_patterns: list[str], **options: Any) -> str:
        if name != HUB_ID:
            raise OSError("404 Client Error. Repository Not Found for url: https://huggingface.co/acme/other.\n\nLook.")
        self.asked.append(tuple(allow_patterns))
        return str(self.folder)


@pytest.fixture
def hub(llava: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(llava)
    monkeypatch.setattr("huggingface_hub.snapshot_download", found)
    return found


def change(name: str, folder: Path) -> str:
    """Damage a checkpoint; what is said of it."""

    def changed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if name == "missing":
            del state["multi_modal_projector.linear_1.weight"]
        elif name == "missing in the language model":
            del state["language_model.model.norm.weight"]
        elif name == "unknown":
            state["image_newline"] = torch.zeros(3)
        elif name == "of another width":
            state["multi_modal_projector.linear_2.weight"] = torch.zeros(32, 31)
        else:
            state["vision_tower.encoder.layers.0.mlp.fc1.weight"] = torch.zeros(32, 17)
        return state

    public.rewritten(folder, changed)
    return {
        "missing": r"linear_1\.weight is missing, which becomes query_transformer\.mlp\.0\.weight",
        "missing in the language model": r"nothing in it becomes language_model\.model\.model\.norm\.weight \[32\]",
        "unknown": "image_newline is not part of the model",
        "of another width": r"\[32, 31\] gives \[32, 31\], but projection\.weight is \[32, 32\] by its",
        "of another width in the tower": r"fc1\.weight \[32, 17\] gives \[32, 17\], but encoder\.tower\.",
    }[name]


@pytest.mark.parametrize(
    "name",
    ["missing", "missing in the language model", "unknown", "of another width", "of another width in the tower"],
)
def test_every_key_is_accounted_for_before_a_tensor_is_read(
    llava: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    said = change(name, llava)
    for where in ("lyrics.plugins.hf.encoder.read_tensors", "lyrics.plugins.causal_lm.build.load_causal_lm"):
        monkeypatch.setattr(where, lambda *anything, **more: pytest.fail("was read"))
    monkeypatch.setattr(SourceCheckpoint, "__getitem__", lambda *anything: pytest.fail("was read"))
    with pytest.raises(WeightsError, match=said) as refused:
        lyrics.load_model(str(llava))
    assert "\n" not in str(refused.value)


def test_a_tensor_that_is_not_finite_is_refused(llava: Path) -> None:
    public.rewritten(llava, lambda state: state | {"multi_modal_projector.linear_2.bias": torch.full((32,), torch.nan)})
    with pytest.raises(WeightsError, match=r"projection\.bias holds values that are not finite"):
        lyrics.load_model(str(llava))


def test_of_a_hub_id_the_small_files_come_first(hub: Hub) -> None:
    model = lyrics.load_model(HUB_ID)
    assert hub.asked[0] == ("*.json", "*.txt", "*.model", "*.jinja")
    assert model.spec.language_model.options["checkpoint"] == HUB_ID
    public.configured(hub.folder, projector_hidden_act="relu")
    hub.asked.clear()
    with pytest.raises(WeightsError, match="only gelu is known"):
        lyrics.load_model(HUB_ID)
    assert not any("safetensors" in pattern for patterns in hub.asked for pattern in patterns)
    with pytest.raises(
        WeightsError, match=r"'acme/other' is no local folder, and the hub did not give it: 404"
    ) as gone:
        lyrics.load_model("acme/other")
    assert "\n" not in str(gone.value)


def test_from_pretrained_reads_it_too(llava: Path) -> None:
    found = lyrics.LyricsModel.from_pretrained(llava)
    torch.testing.assert_close(
        public.our_logits(found, [photograph()]), public.our_logits(lyrics.load_model(str(llava)), [photograph()])
    )
    with pytest.raises(WeightsError, match="is a public model, which has all of its parts"):
        lyrics.LyricsModel.from_pretrained(llava, base=llava)


def test_of_a_type_that_no_plugin_reads_the_known_ones_are_said(llava: Path) -> None:
    public.configured(llava, model_type="llava_next")
    with pytest.raises(WeightsError, match=r"says model_type 'llava_next', and the public models .* are .*llava"):
        lyrics.load_model(str(llava))
    (llava / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="says model_type None"):
        lyrics.load_model(str(llava))


def test_overrides_change_parts(llava: Path) -> None:
    plain = lyrics.load_model(str(llava))
    tuned = lyrics.load_model(str(llava), overrides={"language_model.options.adaptation": "lora"})
    assert any("lora_A" in name for name, _ in tuned.named_parameters())
    images = [photograph()]
    torch.testing.assert_close(public.our_logits(tuned, images), public.our_logits(plain, images))
    with pytest.warns(UserWarning, match=r"built anew: query_transformer \(perceiver-resampler, was mlp-projector\)"):
        other = lyrics.load_model(
            str(llava),
            overrides={"query_transformer": {"use": "perceiver-resampler", "options": {"num_heads": 2}}},
        )
    assert other.query_transformer.num_queries == 64
    assert lyrics.load_model(str(llava), dtype="bfloat16").projection.weight.dtype == torch.bfloat16


def test_training_starts_from_it_where_it_fits(llava: Path) -> None:
    source = lyrics.load_model(str(llava))
    spec = source.spec.with_overrides({"language_model.options.adaptation": "lora"})
    model = lyrics.build_model(spec, weights="pretrained")
    said: list[str] = []
    start_from(model, str(llava), said.append)
    assert said == [f"4 tensors from {llava}"]
    torch.testing.assert_close(model.projection.weight, source.projection.weight)
    torch.testing.assert_close(
        model.query_transformer.state_dict()["mlp.0.bias"], source.query_transformer.state_dict()["mlp.0.bias"]
    )
    other = {"query_transformer": {"use": "perceiver-resampler", "options": {"num_heads": 2, "hidden_size": 24}}}
    foreign = lyrics.build_model(spec.with_overrides(other), weights="random")
    with pytest.raises(CheckpointError, match="none of its tensors fits this model's query transformer or projection"):
        start_from(foreign, str(llava), said.append)
    with pytest.raises(CheckpointError, match=r"model\.start_from=runs/none: is no run folder, and no public model"):
        start_from(model, "runs/none", said.append, downloads=False)


class Acme:
    """A plugin that reads LLaVA's type as it pleases."""

    read = "lyrics.plugins.connectors.llava:read"

    @hookimpl
    def lyrics_public_models(self) -> Iterator[PublicModel]:
        yield PublicModel("acme", "llava", self.read, "Acme's")


class Broken(Acme):
    read = "acme_is_not_here:read"


class Odd(Acme):
    read = "not a callable"


def test_plugins_bring_them(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LYRICS_PLUGINS", "none")
    with pytest.raises(
        AmbiguousNameError, match=r"models of the type 'llava' are read by Acme in-process .* and lyrics-vl "
    ):
        find_public(str(llava), registry=Registry.discover(Acme()))
    failures = Registry.discover(Odd()).failures
    assert any("read must be 'package.module:callable'" in one.cause for one in failures)
    broken = Registry([(PluginSource("acme", "1", "acme", "acme"), Broken)])
    found = find_public(str(llava), registry=broken)
    assert found is not None
    with pytest.raises(PluginError, match=r"the reader of public model 'acme' of .* failed: ModuleNotFoundError"):
        load_public(lyrics.LyricsModel, found)


def test_a_model_folder_and_a_run_are_no_public_models(llava: Path) -> None:
    assert find_public(str(llava)) is not None
    assert find_public(str(llava.parent)) is None
    (llava / "spec.json").write_text(json.dumps({}))
    assert find_public(str(llava)) is None
