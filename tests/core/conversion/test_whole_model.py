"""The released 14B's names at small size, from shards with an index to a model folder that loads; and its true shapes
without values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Blip2VisionConfig, Blip2VisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lyrics import LyricsModel, ModelSpec, build_model
from lyrics.core.build import build_resolved
from lyrics.core.contracts import BuildContext
from lyrics.core.conversion import plan as conversion
from lyrics.core.conversion import whole_model as convert_model
from lyrics.core.conversion.convert import ConversionReport, convert
from lyrics.core.conversion.formats import find_format
from lyrics.core.conversion.plan import ConversionPlan
from lyrics.core.conversion.whole_model import plan_model
from lyrics.core.errors import WeightsError
from lyrics.core.resolve import resolve
from lyrics.core.spec import dump
from lyrics.core.weights.tensors import stored_tensors
from lyrics.plugins.mqformer.convert import RELEASED_STAGE1, to_upstream
from lyrics.plugins.paper.presets import lyrics_released_14b
from lyrics.plugins.ram_plus import RamOptions
from lyrics.plugins.ram_plus.tagger import build_ram
from tests.conftest import PARITY
from tests.core.conversion import converting
from tests.core.conversion.converting import Find, write, write_lists

FORMAT = "lyrics-released-14b"
TEXT = {"vocab_size": 301, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64}


def trunk(model: nn.Module) -> dict[str, torch.Tensor]:
    """The query transformer as the released stage-2 model names it: no ``bert.`` level, no head."""
    state = to_upstream(model, RELEASED_STAGE1)  # type: ignore[arg-type]
    kept = {key.replace("qformer.bert.", "qformer."): tensor for key, tensor in state.items() if ".cls." not in key}
    assert "qformer.embeddings.position_ids" in kept
    return kept


def wrapped(module: nn.Module) -> Mapping[str, torch.Tensor]:
    """The state dict of the transformers model inside, without LoRA."""
    inner = next(m for m in module.modules() if isinstance(m, PreTrainedModel))
    state = inner.state_dict()
    return {name.replace(".base_layer", ""): tensor for name, tensor in state.items() if ".lora_" not in name}


class Released:
    """A small model as the authors would have published it, and the parts that it was made of."""

    def __init__(self, parity: Find) -> None:
        self.ram, self.detector = converting.ram(parity, "ram"), converting.grounding_dino(parity)
        parts = {
            "image_encoder": {"use": "eva-vit-g", "options": _test_options("image-encoder", "eva-vit-g")},
            "refiner.tagger": {"use": "ram", "options": self.ram.options},
            "refiner.detector": {"use": "grounding-dino", "options": self.detector.options},
            "query_transformer.options": {
                **_test_options("query-transformer", "mqformer"),
                "num_grounding": 6,
                "vocab_size": 300,
                "image_dim": 16,
                "local_dims": {"detector": 260},
            },
            "language_model.options": {**TEXT, "lora": {"rank": 2, "target_modules": ["q_proj", "k_proj", "v_proj"]}},
        }
        self.spec: ModelSpec = lyrics_released_14b().with_overrides(parts)
        torch.manual_seed(1)
        self.model = build_model(self.spec, weights="random")
        state = trunk(self.model.query_transformer)
        state |= {f"vision_model.{name}": tensor for name, tensor in wrapped(self.model.encoder).items()}
        state |= {f"language_model.{name}": tensor for name, tensor in wrapped(self.model.language_model).items()}
        state |= {f"language_projection.{name}": t for name, t in self.model.projection.state_dict().items()}
        state |= {f"ram.{key}": tensor for key, tensor in self.ram.state.items()}
        # Where the authors of Grounding DINO have a list with the backbone, those of Lyrics have a name.
        for key, tensor in self.detector.state.items():
            state[f"grounding_dino.{key.replace('backbone.0.', 'backbone.swintransformer.')}"] = tensor
        state["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        self.state = state

    def write(self, folder: Path, *, without: str | None = None, **changed: torch.Tensor) -> Path:
        """Two shards and their index, in ``folder/released``."""
        state = {key: t for key, t in {**self.state, **changed}.items() if without is None or without not in key}
        names = sorted(state)
        source = folder / "released"
        weight_map = {}
        for number, half in enumerate((names[::2], names[1::2]), start=1):
            file = f"model-{number:05d}-of-00002.safetensors"
            write(source / file, {name: state[name] for name in half})
            weight_map |= dict.fromkeys(half, file)
        (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return source

    def convert(
        self, source: Path, spec: ModelSpec | None = None, beside: Mapping[str, Path] | None = None
    ) -> tuple[ConversionReport, Path]:
        """The report, and the model folder, which lies beside the source."""
        dump(spec or self.spec, source.parent / "spec.yaml")
        out = source.parent / "out"
        return convert(source, out, FORMAT, spec=str(source.parent / "spec.yaml"), beside=beside), out


def _test_options(kind: str, name: str) -> dict[str, Any]:
    from lyrics.core.registry.registry import default_registry

    return dict(default_registry().component(kind, name).component.test_options)


def find_parity(name: str) -> Path:
    if not (PARITY / name).is_file():
        pytest.skip(f"parity fixture {PARITY / name} is not there")
    return PARITY / name


@pytest.fixture(scope="module")
def released() -> Released:
    return Released(find_parity)


@pytest.fixture(scope="module")
def converted(released: Released, tmp_path_factory: pytest.TempPathFactory) -> tuple[ConversionReport, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "SHARD_BYTES", 1_000_000)
        return released.convert(released.write(tmp_path_factory.mktemp("converted")))


def equal(found: nn.Module, wanted: nn.Module) -> None:
    one, other = found.state_dict(), wanted.state_dict()
    assert one.keys() == other.keys()
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differing


def shards(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {file.name: load_file(file) for file in sorted(folder.glob("*.safetensors"))}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for tensors in shards(folder).values() for name, tensor in tensors.items()}


@pytest.mark.filterwarnings("ignore:.*was written for:UserWarning")
def test_the_folder_loads_and_is_the_model(
    released: Released, converted: tuple[ConversionReport, Path], tmp_path: Path
) -> None:
    report, out = converted
    loaded = LyricsModel.from_pretrained(out)
    # What the language model has beside the checkpoint's weights: LoRA, which changes nothing yet.
    for part in ("encoder", "projection"):
        equal(getattr(loaded, part), getattr(released.model, part))
    ids = torch.arange(8)[None]
    text, wanted = loaded.language_model.eval(), released.model.language_model.eval()
    ones = torch.ones(1, 8, dtype=torch.long)
    assert torch.equal(text(text.embed(ids), ones), wanted(wanted.embed(ids), ones))
    trunk_then, trunk_now = released.model.query_transformer.state_dict(), loaded.query_transformer.state_dict()
    new = {name.removeprefix("query_transformer.") for name in report.new if name.startswith("query_transformer.")}
    assert new == {name for name in trunk_now if name.startswith("token_head.")}
    for name in trunk_now.keys() - new:
        rows = 300 if name == "word_embeddings.weight" else None
        assert torch.equal(trunk_now[name][:rows], trunk_then[name][:rows]), name
    assert not trunk_now["word_embeddings.weight"][300:].any()

    # The experts: as the components read the same tensors from their own checkpoints.
    folder = tmp_path / "ram"
    write(folder / "model.safetensors", released.ram.state)
    write_lists(folder, released.ram)
    for theirs, ours in (("ram_tag_list.txt", "tags.txt"), ("ram_tag_list_threshold.txt", "thresholds.txt")):
        (folder / theirs).rename(folder / ours)
    options = RamOptions(**{**released.ram.options, "checkpoint": str(folder)})
    equal(loaded.refiner.tagger, build_ram(options, BuildContext("pretrained")))
    unread = "refiner.detector.network.model.backbone.conv_encoder.model.swin.layernorm."
    fresh = ("objectives.", "query_transformer.token_head.", unread)
    assert all(".lora_" in name or name.startswith(fresh) for name in report.new)


def test_the_detector_is_the_one_that_is_read_directly(
    released: Released, converted: tuple[ConversionReport, Path]
) -> None:
    from transformers import GroundingDinoForObjectDetection

    from lyrics.core.weights.pretrained import load_transformers
    from lyrics.plugins.grounding_dino import GroundingDinoOptions
    from lyrics.plugins.grounding_dino.detector import network_config
    from lyrics.plugins.grounding_dino.weights import from_original

    prefix = "refiner.detector.network."
    found = {n.removeprefix(prefix): t for n, t in tensors_of(converted[1]).items() if n.startswith(prefix)}
    config = network_config(GroundingDinoOptions(**released.detector.options).numbers)
    state = from_original(released.detector.state)
    wanted = stored_tensors(load_transformers(GroundingDinoForObjectDetection, config, state, "test"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_every_key_is_accounted_for_and_shards_are_as_transformers_writes_them(
    released: Released, converted: tuple[ConversionReport, Path]
) -> None:
    report, out = converted
    assert set(report.renamed) | set(report.left) | set(report.taken) == set(released.state)
    assert not report.taken
    assert report.renamed["query_tokens"] == ("query_transformer.query_tokens_QD",)
    qkv = ("query_transformer.layers.0.self_attention.qkv.weight",)
    assert [report.renamed[f"qformer.encoder.layer.0.attention.attention.{p}.weight"] for p in ("query", "key")] == [
        qkv
    ] * 2
    assert report.renamed["language_model.model.layers.1.self_attn.q_proj.weight"] == (
        "language_model.model.base_model.model.model.layers.1.self_attn.q_proj.base_layer.weight",
    )
    swin = "ram.visual_encoder.layers.0.blocks.0.attn.qkv.weight"
    assert [name.rpartition("attention.")[2] for name in report.renamed[swin]] == [
        "k_proj.weight", "q_proj.weight", "v_proj.weight",
    ]  # fmt: skip
    expected = ("ram.tag_encoder.", "ram.text_decoder.", "grounding_dino.")
    for key in report.left:
        buffers = key.endswith(("inv_freq", "position_ids", "relative_position_index", "attn_mask"))
        assert buffers or key.startswith(expected), key

    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = shards(out)
    assert len(files) > 3
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    assert list(files) == names
    assert index["weight_map"] == {name: file for file, tensors in files.items() for name in tensors}
    sizes = [sum(t.numel() * t.element_size() for t in tensors.values()) for tensors in files.values()]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert all(size <= 1_000_000 or len(files[name]) == 1 for name, size in zip(names, sizes, strict=True))
    model = build_model(out / "spec.json", weights="meta")
    assert {name: t.shape for tensors in files.values() for name, t in tensors.items()} == {
        name: tensor.shape for name, tensor in stored_tensors(model).items()
    }
    assert {origin.file for origin in report.result} == set(names)


def plan(released: Released, state: Mapping[str, torch.Tensor]) -> ConversionPlan:
    """What would be converted of these tensors."""
    resolved = resolve(released.spec)
    shapes = {key: tensor.to("meta") for key, tensor in state.items()}
    return plan_model(
        build_resolved(LyricsModel, resolved, weights="meta"), resolved, state, shapes, find_format(FORMAT)
    )[0]


def test_new_values_are_the_same_in_every_run(
    released: Released, converted: tuple[ConversionReport, Path], tmp_path: Path
) -> None:
    """LoRA changes nothing, and what is initialized does not depend on the state of the generator."""
    torch.manual_seed(12345)
    _, out = released.convert(released.write(tmp_path))
    found, other = tensors_of(converted[1]), tensors_of(out)
    assert all(torch.equal(found[name], other[name]) for name in found)
    lora = {name: tensor for name, tensor in found.items() if ".lora_" in name}
    assert len(lora) == 2 * 3 * 2
    assert all(bool(tensor.any()) == (".lora_A." in name) for name, tensor in lora.items())
    assert found["query_transformer.token_head.transform.weight"].std() > 0.01


def test_values_keep_their_precision_and_the_number_of_words_is_the_checkpoints(
    released: Released, tmp_path: Path
) -> None:
    """16 bit stays 16 bit. A padding token was added to Vicuna's 32,000."""
    half = {key: t.half() for key, t in released.state.items() if t.is_floating_point()}
    spec = released.spec.with_overrides({"language_model.options.vocab_size": 300})
    report, out = released.convert(released.write(tmp_path, **half), spec)
    kinds = {name: tensor.dtype for name, tensor in tensors_of(out).items() if name not in report.new}
    assert set(kinds.values()) == {torch.float16}
    assert any("vocab_size is 301" in note for note in report.notes)
    assert json.loads((out / "spec.json").read_text())["language_model"]["options"]["vocab_size"] == 301


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("language_projection.bias", r"language_projection\.bias is missing, which becomes projection\.bias \[32\]"),
        (
            "layers.1.mlp.up_proj",
            r"language_model\.model\.layers\.1\.mlp\.up_proj\.weight is missing, which becomes language_m",
        ),
        ("ram.fc.bias", r"no tensor ram\.fc\.bias \(1 are missing\) for refiner\.tagger"),
        ("ram.", "for refiner.tagger; give a --model with another tagger"),
        ("grounding_dino.", "no tensor under grounding_dino. for refiner.detector; give a --model"),
        ("output_query.LayerNorm.weight", r"has nothing for layers\.0\.query_ffn\.norm\.weight"),
    ],
)
def test_a_missing_tensor_is_named_with_what_it_becomes(released: Released, without: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        plan(released, {key: tensor for key, tensor in released.state.items() if without not in key})


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("language_projection.weight", (5, 5),
         r"language_projection\.weight \[5, 5\] gives .*, but projection\.weight is \[32, 32\]"),
        ("query_tokens", (1, 9, 32), "query_tokens of the released Lyrics are 9, the spec says 10"),
        ("qformer.embeddings.word_embeddings.weight", (299, 32), "has 299 words, the spec says 300"),
        ("ram.fc.weight", (1, 3),
         r"ram\.fc\.weight \[1, 3\] gives \[1, 3\], but refiner\.tagger\.fc\.weight is \[1, 64\]"),
    ],
)  # fmt: skip
def test_a_wrong_shape_names_both(released: Released, key: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        plan(released, {**released.state, key: torch.zeros(shape)})


def test_a_model_without_experts_leaves_their_tensors(released: Released, tmp_path: Path) -> None:
    spec = released.spec.with_overrides({"refiner.tagger": None})
    report, _ = released.convert(released.write(tmp_path, without="ram.fc"), spec)
    assert any(key.startswith("ram.visual_encoder.") for key in report.left)
    assert not any("tagger" in note for note in report.notes)


def test_a_part_that_the_checkpoint_cannot_have(released: Released, tmp_path: Path) -> None:
    options = _test_options("tagger", "ram-plus")
    spec = released.spec.with_overrides({"refiner.tagger": {"use": "ram-plus", "options": options}})
    with pytest.raises(
        WeightsError, match=r"refiner\.tagger: tagger 'ram-plus' has weights, and the format .* has none"
    ):
        released.convert(released.write(tmp_path), spec)


def test_an_index_that_names_what_is_not_there(released: Released, tmp_path: Path) -> None:
    source = released.write(tmp_path)
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"names model-00002-of-00002\.safetensors, which is not there"):
        released.convert(source)


def test_shapes_are_known_without_reading_values(released: Released, tmp_path: Path) -> None:
    source = released.write(tmp_path)
    with conversion.opened(source, tmp_path / "work") as checkpoint:
        for key, tensor in checkpoint.shapes().items():
            assert tensor.is_meta
            assert (tensor.shape, tensor.dtype) == (released.state[key].shape, released.state[key].dtype)


# --- the true sizes


def released_trunk(parity: Find) -> dict[str, torch.Tensor]:
    """Names and shapes of the released stage-1 query transformer, of which stage 2 has no head and no
    ``bert.`` level.
    """
    table = json.loads(parity("released_keys.json").read_text())
    state = {
        key.replace("qformer.bert.", "qformer."): torch.empty(shape, device="meta")
        for key, shape in table.items()
        if ".cls." not in key
    }
    state["query_tokens"] = torch.empty(1, 96, 768, device="meta")
    return state


def test_the_whole_model_at_its_true_size(parity: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vicuna-13B with 32,001 words and BLIP-2's ViT-g, named by transformers' own classes; experts that have no
    weights.
    """
    spec = lyrics_released_14b().with_overrides(
        {
            "refiner.tagger": None,
            "refiner.detector": {"use": "cached", "options": {"missing": "empty"}},
            "query_transformer.options.local_dims": {"detector": 4},
            "language_model.options.vocab_size": 32001,
            "objectives": {},
        }
    )
    resolved = resolve(spec)
    model = build_resolved(LyricsModel, resolved, weights="meta")
    state = released_trunk(parity)
    for key in [key for key in state if "detection_crossattention.attention." in key]:
        if key.endswith(("key.weight", "value.weight")):
            assert state[key].shape == (768, 260)
            state[key] = torch.empty(768, 4, device="meta")
    with torch.device("meta"):
        text = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=32001,
                hidden_size=5120,
                num_hidden_layers=40,
                num_attention_heads=40,
                intermediate_size=13824,
            )
        )
        tower = Blip2VisionModel(
            Blip2VisionConfig(hidden_size=1408, intermediate_size=6144, num_hidden_layers=39, num_attention_heads=16)
        )
        state |= {f"language_model.{name}": tensor for name, tensor in text.state_dict().items()}
        state |= {f"vision_model.{name}": tensor for name, tensor in tower.state_dict().items()}
        state |= {"language_projection.weight": torch.empty(5120, 768), "language_projection.bias": torch.empty(5120)}
    # Initial values of this size take seconds and are tested above.
    monkeypatch.setattr(
        convert_model, "_fresh", lambda part, shapes, context: {n: torch.empty(s) for n, s in shapes.items()}
    )
    found, _ = plan_model(model, resolved, state, state, find_format(FORMAT))
    used = {key for piece in found.tensors.values() for key in piece.keys}
    assert set(state) - used == {"qformer.embeddings.position_ids"}
    assert set(found.tensors) == set(stored_tensors(model))
    made = {
        name.removeprefix("query_transformer."): tuple(piece.of(state).shape) for name, piece in found.tensors.items()
    }
    assert made["query_tokens_QD"] == (96, 768)
    assert made["word_embeddings.weight"] == (30528, 768)
    assert made["layers.10.local_attention.query.weight"] == (768, 768)
    assert len([name for name in found.new if ".lora_" in name]) == 40 * 3 * 2
    values = sum(state[key].numel() for key in used)
    assert (
        14.1e9 < values < 14.3e9
    )  # 13.016 + 0.986 + 0.199 thousand million (released-code's account of the shards' size)
