"""Every component format at small size: convert, then build the component from the result as it is, and get upstream's
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lyrics.core.contracts import BuildContext
from lyrics.core.conversion import plan as conversion
from lyrics.core.conversion import unpickle
from lyrics.core.conversion.convert import ConversionReport, convert
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.spec import dump
from lyrics.core.stage1.streams import Features, Stream, full
from lyrics.plugins.grounding_dino import GroundingDinoOptions
from lyrics.plugins.grounding_dino.detector import network_config
from lyrics.plugins.mqformer import MQFormerOptions, QFormerOptions
from lyrics.plugins.mqformer.build import build_mqformer, build_qformer
from lyrics.plugins.mqformer.convert import LAVIS, TRANSFORMERS, Naming, load_checkpoint, sources
from lyrics.plugins.mqformer.model import MQFormer
from lyrics.plugins.mqformer.public import convert_lavis, convert_transformers
from lyrics.plugins.ram_plus import RamOptions, RamPlusOptions
from lyrics.plugins.ram_plus.tagger import build_ram, build_ram_plus
from lyrics.plugins.sam_hq import SamHqOptions
from lyrics.plugins.sam_hq.decoder import box_prompts, decode, embed
from lyrics.plugins.sam_hq.segmenter import build as build_sam_hq
from tests.core.conversion import converting
from tests.core.conversion.converting import Find, Public, write, write_lists, write_spec
from tests.core.small import small

PRETRAINED, RANDOM = BuildContext("pretrained"), BuildContext("random")


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a process that imports torch takes seconds; ``test_convert.py`` and ``test_unpickle.py`` do it."""

    def here(source: Path, folder: Path) -> list[Path]:
        folder.mkdir(parents=True)
        unpickle._write(source, folder)
        return sorted(folder.iterdir())

    monkeypatch.setattr(conversion, "unpickle", here)


def pickled(path: Path, state: Mapping[str, torch.Tensor], **beside: object) -> Path:
    """As the projects publish them: the state dict under ``model``, beside what training left."""
    torch.save({"model": dict(state), **beside}, path)
    return path


def same(found: torch.Tensor, wanted: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=atol)


# --- BLIP-2


def built(kind: str, options: dict[str, Any], num_visual: int = 8) -> MQFormer:
    """A query transformer without dropout, on image tokens 48 wide."""
    sizes = {**options, "num_visual": num_visual, "normalize_image_tokens": True}
    torch.manual_seed(0)
    if kind == "qformer":
        return build_qformer(QFormerOptions(**sizes), BuildContext("random", 48)).eval()
    local = {"detector": 20, "segmenter": 12}
    return build_mqformer(MQFormerOptions(**sizes, num_grounding=4), BuildContext("random", 48, local)).eval()


def reader_spec(path: Path, kind: str, options: dict[str, Any], **overrides: object) -> str:
    """A spec whose image tokens are 48 wide and whose query transformer is of these sizes."""
    return write_spec(
        path,
        image_encoder__options={"width": 48},
        query_transformer={"use": kind, "options": {**options, "num_visual": 8, **overrides}},
    )


@pytest.mark.parametrize("kind", ["qformer", "mqformer"])
@pytest.mark.parametrize("which", ["lavis", "hf"])
def test_blip2_gives_upstreams_query_pass(tmp_path: Path, parity: Find, which: str, kind: str) -> None:
    public = converting.blip2(parity, which)
    name = {"lavis": "blip2-lavis", "hf": "blip2-transformers"}[which]
    tower = {"visual_encoder.blocks.0.attn.proj.weight": torch.ones(2, 2)} if which == "lavis" else {}
    if which == "lavis":
        source = pickled(tmp_path / "blip2_pretrained.pth", {**public.state, **tower}, epoch=1)
    else:
        source = write(tmp_path / "model.safetensors", public.state)
    report = convert(source, tmp_path / "out", name, spec=reader_spec(tmp_path / "spec.yaml", kind, public.options))
    assert not report.renamed
    assert set(report.taken) | set(report.left) == set(public.state) | set(tower)
    heads = ("temp", "vision_pro", "text_pro", "itm_head")
    copies = ("decoder.weight", "decoder.bias", "position_ids")
    for key in report.left:
        assert key.startswith((*heads, "vision_model.", "visual_encoder.")) or key.endswith(copies), key
    assert any("LayerNorm" in key or "layernorm" in key for key in report.taken)

    model = built(kind, public.options)
    fresh = built(kind, public.options)
    load_checkpoint(model, tmp_path / "out" / "model.safetensors")
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, fresh.get_parameter(n))}
    new = {n.partition("[")[0] for n in report.new}
    assert changed | new >= {n for n, _ in model.named_parameters()}
    # A partly new matrix is changed and new; nothing else is both.
    assert all(f"{n}[" in " ".join(report.new) for n in changed & new)
    local = {"detector": (torch.zeros(4, 1, 20), torch.ones(4, 1, dtype=torch.bool))}
    if kind == "mqformer":
        local["segmenter"] = (torch.zeros(4, 1, 12), torch.ones(4, 1, dtype=torch.bool))
    lavis = load_file(parity("blip2_lavis.safetensors"))
    features = Features(lavis["in.image_features"], local if kind == "mqformer" else {})
    rows = torch.arange(4)
    outputs = model([Stream("q", full("V"), rows, rows, wanted={"V": "all"})], features)
    same(outputs("q", "V"), lavis["query.last_hidden_state"])


def test_blip2_reports_what_the_grounding_branch_needs(tmp_path: Path, parity: Find) -> None:
    public = converting.blip2(parity, "hf")
    source = write(tmp_path / "model.safetensors", public.state)
    spec = reader_spec(tmp_path / "spec.yaml", "mqformer", public.options, num_grounding=6)
    report = convert(source, tmp_path / "out", "blip2-transformers", spec=spec)
    new = set(report.new)
    layers = {int(name.split(".")[1]) for name in new if ".local_attention." in name}
    assert layers == {0, 2}
    assert {name.rpartition(".key_value.")[2] for name in new if ".key_value." in name} == {
        "detector.weight", "detector.bias", "segmenter.weight", "segmenter.bias",
    }  # fmt: skip
    assert "query_tokens_QD[8:]" in new
    assert {"token_head.transform.weight", "token_head.norm.bias"} <= new
    assert "layers.0.image_attention.query.weight" not in new


@pytest.mark.parametrize("change", ["missing", "shape", "part"])
def test_blip2_that_lacks_something_names_both(tmp_path: Path, parity: Find, change: str) -> None:
    public = converting.blip2(parity, "lavis")
    key = "Qformer.bert.encoder.layer.1.attention.self.value.weight"
    lone = "Qformer.bert.encoder.layer.3.output_query.dense.weight"
    state = dict(public.state)
    if change == "part":
        del state[key]
        message = f"layers.1.self_attention.qkv.weight needs .*{key}; the checkpoint has only"
    elif change == "missing":
        del state[lone]
        message = r"has nothing for layers\.3\.query_ffn\.down\.weight"
    else:
        state[lone] = torch.ones(3, 5)
        message = r"layers\.3\.query_ffn\.down\.weight is \(64, 128\) in the model and \(3, 5\) in the checkpoint"
    spec = reader_spec(tmp_path / "spec.yaml", "mqformer", public.options)
    with pytest.raises(WeightsError, match=message):
        convert(write(tmp_path / "m.safetensors", state), tmp_path / "out", "blip2-lavis", spec=spec)
    assert not (tmp_path / "out").exists()


def test_blip2_of_another_image_encoder_names_both_widths(tmp_path: Path, parity: Find) -> None:
    public = converting.blip2(parity, "lavis")
    spec = write_spec(
        tmp_path / "spec.yaml", query_transformer={"use": "mqformer", "options": {**public.options, "num_visual": 8}}
    )
    with pytest.raises(WeightsError, match=r"crossattention\.self\.key\.weight reads tokens 48 wide, the model"):
        convert(write(tmp_path / "m.safetensors", public.state), tmp_path / "out", "blip2-lavis", spec=spec)


def test_blip2_whose_tied_copies_differ_is_refused(tmp_path: Path, parity: Find) -> None:
    public = converting.blip2(parity, "lavis")
    state = {**public.state, "Qformer.cls.predictions.decoder.bias": torch.full((60,), 9.0)}
    spec = reader_spec(tmp_path / "spec.yaml", "mqformer", public.options)
    with pytest.raises(WeightsError, match=r"decoder\.bias differs from Qformer\.cls\.predictions\.bias"):
        convert(write(tmp_path / "m.safetensors", state), tmp_path / "out", "blip2-lavis", spec=spec)


class OnMeta(dict[str, torch.Tensor]):
    """A checkpoint of full size: names and shapes without values."""

    path = Path("blip2_pretrained.pth")

    def shapes(self) -> dict[str, torch.Tensor]:
        return dict(self)


def full_size(naming: Naming, width: int) -> OnMeta:
    """The keys and shapes of BLIP-2's published stage-1 files: BERT base with [DEC], 32 queries, image tokens of this
    width.
    """
    hidden, inner, words = 768, 3072, 30523
    shapes: dict[str, tuple[int, ...]] = {
        "query_tokens": (1, 32, hidden),
        f"{naming.embeddings}.word_embeddings.weight": (words, hidden),
        f"{naming.embeddings}.position_embeddings.weight": (512, hidden),
    }

    def put(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    put(naming.embedding_norm, hidden)
    put(str(naming.image_norm), width)
    for number in range(12):
        layer = f"{naming.encoder}.{number}"
        for block, dim in (("attention", hidden), *([("crossattention", width)] if number % 2 == 0 else [])):
            put(f"{layer}.{block}.{naming.nested}.query", hidden, hidden)
            put(f"{layer}.{block}.{naming.nested}.key", hidden, dim)
            put(f"{layer}.{block}.{naming.nested}.value", hidden, dim)
            put(f"{layer}.{block}.output.dense", hidden, hidden)
            put(f"{layer}.{block}.output.LayerNorm", hidden)
        for suffix in ("", "_query"):
            put(f"{layer}.intermediate{suffix}.dense", inner, hidden)
            put(f"{layer}.output{suffix}.dense", hidden, inner)
            put(f"{layer}.output{suffix}.LayerNorm", hidden)
    if naming.head is not None:
        put(f"{naming.head}.transform.dense", hidden, hidden)
        put(f"{naming.head}.transform.LayerNorm", hidden)
        put(f"{naming.head}.decoder", words, hidden)
        shapes[f"{naming.head}.bias"] = (words,)
    return OnMeta({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})


@pytest.mark.parametrize("width", [1024, 1408], ids=["ViT-L", "ViT-g"])
@pytest.mark.parametrize("naming", [LAVIS, TRANSFORMERS], ids=["lavis", "transformers"])
def test_blip2_at_its_published_sizes(naming: Naming, width: int) -> None:
    """Under default options, the width of the image tokens taken from the file."""
    state = full_size(naming, width)
    function = convert_lavis if naming is LAVIS else convert_transformers
    plan = function(state, MQFormerOptions(), BuildContext("meta"))
    decoder = {f"{naming.head}.decoder.{part}" for part in ("weight", "bias")}
    assert set(plan.tensors) == set(state) - decoder
    new = {name for name in plan.new if ".local_attention." not in name and not name.startswith("token_head.")}
    assert new == {"query_tokens_QD[32:]", "word_embeddings.weight[30523:]"}
    with torch.device("meta"):
        model = build_mqformer(MQFormerOptions(normalize_image_tokens=True), BuildContext("meta", width))
    assert {key for source in sources(model, naming).values() for key in source.keys} == set(plan.tensors)


# --- RAM


@pytest.mark.parametrize("which", ["ram", "ram_plus"])
def test_ram_gives_upstreams_logits(tmp_path: Path, parity: Find, which: str) -> None:
    public = converting.ram(parity, which)
    name = which.replace("_", "-")
    source = pickled(tmp_path / f"{which}_swin_large_14m.pth", public.state)
    write_lists(tmp_path, public)
    spec = write_spec(tmp_path / "spec.yaml", refiner__tagger={"use": name, "options": public.options})
    report = convert(source, tmp_path / "out", name, spec=spec)
    assert report.component == f"tagger {name}"
    assert report.files == ("tags.txt", "thresholds.txt")
    assert not report.new
    assert not report.renamed
    assert set(report.taken) | set(report.left) == set(public.state)
    assert all(key.startswith(("tag_encoder.", "text_decoder.")) or "visual_encoder" in key for key in report.left)
    assert any(key.startswith("tag_encoder.") for key in report.left) == (which == "ram")
    options = {**public.options, "checkpoint": str(tmp_path / "out")}
    if which == "ram":
        tagger = build_ram(RamOptions(**options), PRETRAINED)
    else:
        tagger = build_ram_plus(RamPlusOptions(**options), PRETRAINED)
    with torch.no_grad():
        same(tagger.logits(public.tensors["in.image"]), public.tensors["logits"])
    assert list(tagger.tags) == public.about["tag_list"]
    assert list(tagger.thresholds) == pytest.approx(public.about["thresholds"])


@pytest.mark.parametrize("fault", ["missing", "short"])
def test_ram_without_its_tag_list_says_where_it_is(tmp_path: Path, parity: Find, fault: str) -> None:
    public = converting.ram(parity, "ram_plus")
    write_lists(tmp_path, public)
    lists = tmp_path / "ram_tag_list_threshold.txt"
    if fault == "missing":
        lists.unlink()
        message = r"has no ram_tag_list_threshold\.txt \(or thresholds\.txt\).*recognize-anything"
    else:
        lists.write_text("0.5\n")
        message = r"ram_tag_list_threshold\.txt: has 1 lines, but the tagger knows 7 tags"
    spec = write_spec(tmp_path / "spec.yaml", refiner__tagger={"use": "ram-plus", "options": public.options})
    with pytest.raises(WeightsError, match=message):
        convert(write(tmp_path / "m.safetensors", public.state), tmp_path / "out", "ram-plus", spec=spec)


def test_ram_of_other_sizes_names_both_shapes(tmp_path: Path, parity: Find) -> None:
    public = converting.ram(parity, "ram_plus")
    write_lists(tmp_path, public)
    options = {**public.options, "num_tags": 8}
    spec = write_spec(tmp_path / "spec.yaml", refiner__tagger={"use": "ram-plus", "options": options})
    with pytest.raises(WeightsError, match=r"label_embed \(it is \[357, 512\], the options ask for \[408, 512\]\)"):
        convert(write(tmp_path / "m.safetensors", public.state), tmp_path / "out", "ram-plus", spec=spec)


# --- Grounding DINO


def convert_dino(folder: Path, public: Public, state: Mapping[str, torch.Tensor], **changes: Any) -> ConversionReport:
    options = {**public.options, **changes}
    spec = write_spec(
        folder / "spec.yaml",
        refiner__detector={"use": "grounding-dino", "options": options},
        query_transformer__options__local_dims=None,
    )
    return convert(pickled(folder / "groundingdino.pth", state), folder / "out", "grounding-dino", spec=spec)


def test_grounding_dino_loads_as_if_read_directly(tmp_path: Path, parity: Find) -> None:
    """The published file has ``module.`` before every key, and tensors that nothing reads."""
    from transformers import GroundingDinoForObjectDetection

    from lyrics.core.weights.pretrained import load_transformers, read_tensors
    from lyrics.plugins.grounding_dino.weights import from_original

    public = converting.grounding_dino(parity)
    extra = {"label_enc.weight": torch.zeros(3, 4), "bert.embeddings.position_ids": torch.zeros(1, 4)}
    state = {f"module.{key}": tensor for key, tensor in {**public.state, **extra}.items()}
    (tmp_path / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    report = convert_dino(tmp_path, public, state)
    assert not report.taken
    assert all(report.renamed[key] == (key.removeprefix("module."),) for key in report.renamed)
    assert {"module.label_enc.weight", "module.bert.embeddings.position_ids"} <= set(report.left)
    assert set(report.renamed) | set(report.left) == set(state)
    assert report.files == ("vocab.txt",)
    config = network_config(GroundingDinoOptions(**public.options).numbers)
    found, wanted = (
        load_transformers(GroundingDinoForObjectDetection, config, from_original(s), "test").state_dict()
        for s in (read_tensors(tmp_path / "out"), public.state)
    )
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("transformer.decoder.norm.weight", r"model\.decoder\.layer_norm\.weight is missing"),
        (None, r"query_position_embeddings\.weight is \[20, 256\], but the options need \[30, 256\]"),
    ],
)
def test_grounding_dino_that_does_not_fit(tmp_path: Path, parity: Find, key: str | None, message: str) -> None:
    public = converting.grounding_dino(parity)
    state = {name: tensor for name, tensor in public.state.items() if name != key}
    with pytest.raises(WeightsError, match=message):
        convert_dino(tmp_path, public, state, queries=30 if key is None else 20)
    assert not (tmp_path / "out").exists()


def test_without_a_tokenizer_a_note_says_so(tmp_path: Path, parity: Find) -> None:
    public = converting.grounding_dino(parity)
    report = convert_dino(tmp_path, public, public.state)
    assert any("google-bert/bert-base-uncased" in note for note in report.notes)
    assert not report.files


# --- SAM-HQ


def test_sam_hq_gives_upstreams_masks(tmp_path: Path, parity: Find) -> None:
    """Published as a bare state dict."""
    public = converting.sam_hq(parity)
    source = tmp_path / "sam_hq_vit_h.pth"
    torch.save(public.state, source)
    spec = write_spec(tmp_path / "spec.yaml", refiner__segmenter={"use": "sam-hq", "options": public.options})
    report = convert(source, tmp_path / "out", "sam-hq", spec=spec)
    assert set(report.taken) == set(public.state)
    assert not report.left
    assert not report.new
    assert not report.renamed
    options = SamHqOptions(**{**public.options, "checkpoint": str(tmp_path / "out")})
    network = build_sam_hq(options, PRETRAINED).network
    with torch.no_grad():
        embedding = embed(network, public.tensors["preprocessed"][0])
        first, quality = decode(network, embedding, box_prompts(network, public.tensors["in.0.boxes"]))
    same(first + quality, public.tensors["single_hq_sum.0.low_res_logits"][:, 0])


def test_sam_hq_that_lacks_a_tensor(tmp_path: Path, parity: Find) -> None:
    public = converting.sam_hq(parity)
    del public.state["mask_decoder.hf_mlp.layers.1.bias"]
    spec = write_spec(tmp_path / "spec.yaml", refiner__segmenter={"use": "sam-hq", "options": public.options})
    with pytest.raises(WeightsError, match=r"mask_decoder\.hq_mask_mlp\.layers\.0\.bias is missing"):
        convert(write(tmp_path / "m.safetensors", public.state), tmp_path / "out", "sam-hq", spec=spec)


def test_a_spec_without_a_part_for_the_format(tmp_path: Path, parity: Find) -> None:
    public = converting.sam_hq(parity)
    dump(small(), tmp_path / "spec.yaml")
    with pytest.raises(SpecError, match=r"no part of it reads the format 'sam-hq'; those that do: segmenter 'sam-hq'"):
        convert(
            write(tmp_path / "m.safetensors", public.state),
            tmp_path / "out",
            "sam-hq",
            spec=str(tmp_path / "spec.yaml"),
        )
