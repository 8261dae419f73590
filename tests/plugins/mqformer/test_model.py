"""What the model promises besides its numbers: initialization, padding, pruning, sharing, options and errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError, SpecError, WeightsError
from lyrics.core.stage1.streams import Features, Stream, Text, full
from lyrics.plugins.mqformer import MQFormerOptions, QFormerOptions
from lyrics.plugins.mqformer.build import build_mqformer, build_qformer
from lyrics.plugins.mqformer.convert import from_upstream, load_checkpoint, load_converted, to_upstream
from tests.plugins.objectives.cases import features, small_model

ROWS = torch.arange(3)
QUERIES = Stream("queries", full("VG"), ROWS, ROWS, wanted={"V": "all", "G": "all"})
TEXT = {"S": Text.from_lists([[20, 21], [22], []]), "C": Text.from_lists([[30], [31, 32, 33], [34, 35]])}
ALL = {"V": "all", "G": "all", "S": "all", "C": "all"}


def test_grounding_attention_is_xavier_and_the_rest_is_bert() -> None:
    options = MQFormerOptions(num_layers=2, vocab_size=300)
    torch.manual_seed(0)
    model = build_mqformer(options, BuildContext("random", 1024, {"detector": 260}))
    grounding, image = model.layers[0].local_attention, model.layers[0].image_attention
    keys, values = grounding.key_value["detector"].weight.chunk(2)
    for weight in (grounding.query.weight, grounding.output.weight, keys[:, :260], values[:, :260]):
        bound = math.sqrt(6 / sum(weight.shape))
        assert float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert (grounding.key_value["detector"].weight[:, 260:] == 0).all()
    assert grounding.key_value["detector"].in_features == 264
    for weight in (image.query.weight, model.layers[0].self_attention.qkv.weight, model.word_embeddings.weight):
        assert float(weight.std()) == pytest.approx(0.02, rel=0.05)
    assert model.word_embeddings.num_embeddings == 320
    assert float(model.query_tokens_QD.std()) == pytest.approx(0.02, rel=0.05)
    assert len(torch.unique(model.query_tokens_QD, dim=0)) == 64, "no two queries are alike"


def test_numbers_begin_in_order_where_asked_to() -> None:
    """Near numbers are nearer than far ones; every other weight begins as without."""
    sizes = {"vocab_size": 1856, "builtin_tokenizer": "words"}
    usual, ordered = small_model(**sizes), small_model(**sizes, numbers_in_order=True)
    ids = torch.tensor(ordered.tokenizer.convert_tokens_to_ids([str(number) for number in range(1000)]))
    rows, random = ordered.word_embeddings.weight[ids], usual.word_embeddings.weight[ids]
    near, far = ((rows[step:] - rows[:-step]).norm(dim=1).mean() for step in (1, 300))
    assert near < far / 5
    assert float((random[1:] - random[:-1]).norm(dim=1).mean()) == pytest.approx(
        float((random[300:] - random[:-300]).norm(dim=1).mean()), rel=0.05
    )
    others = torch.ones(len(usual.word_embeddings.weight), dtype=torch.bool)
    others[ids] = False
    assert torch.equal(usual.word_embeddings.weight[others], ordered.word_embeddings.weight[others])
    assert torch.equal(usual.layers[0].self_attention.qkv.weight, ordered.layers[0].self_attention.qkv.weight)
    with torch.device("meta"):
        small = MQFormerOptions(**sizes, numbers_in_order=True, num_layers=1)
        build_mqformer(small, BuildContext("meta", 24, {"detector": 20}))
    with pytest.warns(UserWarning, match="numbers_in_order: has no effect, as not every number is one token"):
        small_model(numbers_in_order=True)


def test_features_at_the_padded_width_give_the_same() -> None:
    model = small_model()
    feats = features(3, dtype=torch.float32)
    wide = {name: (torch.nn.functional.pad(t, (0, -t.shape[-1] % 8)), m) for name, (t, m) in feats.local.items()}
    assert any(wide[name][0].shape != feats.local[name][0].shape for name in wide)
    with torch.no_grad():
        got, want = model([QUERIES], Features(feats.image_tokens_BND, wide)), model([QUERIES], feats)
    assert torch.equal(got("queries", "G"), want("queries", "G"))


def test_each_kind_of_query_reads_its_own_features_first() -> None:
    """In a one-layer model V depends on the image and not on local tokens, and G the other way round."""
    model = small_model(num_layers=1)
    one, other = features(3, dtype=torch.float32), features(3, seed=6, dtype=torch.float32)
    with torch.no_grad():
        base = model([QUERIES], one)
        image = model([QUERIES], Features(other.image_tokens_BND, one.local))
        local = model([QUERIES], Features(one.image_tokens_BND, other.local))
    assert torch.equal(base("queries", "V"), local("queries", "V"))
    assert torch.equal(base("queries", "G"), image("queries", "G"))
    assert not torch.allclose(base("queries", "V"), image("queries", "V"))
    assert not torch.allclose(base("queries", "G"), local("queries", "G"))


def test_without_local_sources_grounding_queries_skip_their_attention() -> None:
    model = small_model(local_dims={})
    assert all(layer.local_attention is None for layer in model.layers)
    outputs = model([QUERIES], Features(features(3, dtype=torch.float32).image_tokens_BND))
    assert outputs("queries", "G").shape == (3, 3, 48)


def test_the_last_layer_computes_wanted_rows_only() -> None:
    model = small_model(num_layers=2)
    feats = features(3, dtype=torch.float32)
    flops = {}
    for name, wanted in (("all", ALL), ("first", {"C": "first"})):
        text = {"S": TEXT["S"], "C": TEXT["C"]}
        stream = Stream("x", full("VGSC"), ROWS, ROWS, text, wanted=wanted)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            outputs = model([stream], feats)
        flops[name] = counter.get_total_flops()
        if name == "all":
            complete = outputs("x", "C")
        else:
            torch.testing.assert_close(outputs("x", "C"), complete[[0, 1, 4]])
    rows = 3 * 7 + 3 + 6 - 3  # query rows, spatial rows and caption rows, less the three wanted
    per_row = 2 * (48 * 48 * 2 + 2 * 48 * 96)  # query projection, output, feed-forward
    assert flops["all"] - flops["first"] >= rows * per_row


def test_features_are_projected_once_however_many_streams_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    feats = features(3, dtype=torch.float32)
    calls = []

    def counted(project):
        def counting(*arguments):
            calls.append(1)
            return project(*arguments)

        return counting

    for layer in model.layers:
        if layer.image_attention is not None:
            monkeypatch.setattr(layer.image_attention, "project", counted(layer.image_attention.project))
    streams = [Stream(f"s{i}", full("VG"), ROWS, ROWS.roll(i), wanted={"V": "all"}) for i in range(4)]
    memory = model.project(feats)
    model(streams, memory)
    model(streams[:2], memory)
    assert len(calls) == 2, "layers 0 and 2, once each"


def test_the_folded_norm_is_the_norm() -> None:
    """Scale and shift of the image tokens' LayerNorm, folded into the projections, give the same outputs and gradients;
    image tokens
    that need a gradient get it."""
    model = small_model(normalize_image_tokens=True).double()
    feats = features(3)
    tokens = feats.image_tokens_BND.clone().requires_grad_()
    feats = Features(tokens, feats.local)
    stream = Stream("x", full("VG"), ROWS, ROWS, wanted={"V": "all"})
    found = []
    for hidden in (model([stream], feats)("x", "V"), model.forward_dense(stream, feats).hidden_RLD[:, :4]):
        inputs = [
            tokens,
            model.image_norm.weight,
            model.image_norm.bias,
            model.layers[0].image_attention.key_value["image"].weight,
        ]
        found.append([hidden, *torch.autograd.grad((hidden**2).sum(), inputs)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_relu_is_relu() -> None:
    gelu, relu = small_model(), small_model(activation="relu")
    relu.load_state_dict(gelu.state_dict())
    feats = features(3, dtype=torch.float32)
    stream = Stream("x", full("VGSC"), ROWS, ROWS, TEXT, wanted=ALL)
    with torch.no_grad():
        packed, dense = relu([stream], feats), relu.forward_dense(stream, feats)
        assert not torch.allclose(packed("x", "V"), gelu([stream], feats)("x", "V"), atol=1e-3)
    torch.testing.assert_close(packed("x", "V"), dense.hidden_RLD[:, :4], rtol=1e-5, atol=1e-5)


def test_dropout_is_on_in_training_only_and_follows_the_seed() -> None:
    model = small_model(attention_dropout=0.3, hidden_dropout=0.0)
    feats = features(3, dtype=torch.float32)

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return model([QUERIES], feats)("queries", "V")

    assert torch.equal(run(1), run(2))
    model.train()
    assert torch.equal(run(1), run(1))
    assert not torch.allclose(run(1), run(2))


def test_attention_dropout_does_not_depend_on_what_else_is_packed() -> None:
    model = small_model(attention_dropout=0.3, hidden_dropout=0.0).train()
    feats = features(3, dtype=torch.float32)
    other = Stream("other", full("VGSC"), ROWS, ROWS, TEXT, wanted={"V": "all"})
    found = []
    for streams in ([QUERIES], [other, QUERIES]):
        torch.manual_seed(4)
        with torch.no_grad():
            found.append(model(streams, feats)("queries", "G"))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("feats", "message"),
    [
        (
            Features(torch.zeros(3, 5, 7), features(3).local),
            r"image tokens are 7 wide; this query transformer reads 24",
        ),
        (Features(torch.zeros(3, 5, 24)), r"local tokens come from \[\]; .* reads \['detector', 'segmenter'\]"),
        (
            Features(torch.zeros(3, 5, 24), {n: (torch.zeros(3, 2, 9), m) for n, (_, m) in features(3).local.items()}),
            r"detector tokens are 9 wide; this query transformer reads 20",
        ),
    ],
)
def test_features_that_do_not_fit_are_named(feats: Features, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        small_model()([QUERIES], feats)


def test_a_text_longer_than_the_positions_is_named() -> None:
    model = small_model()
    stream = Stream("x", full("S"), torch.arange(1), None, {"S": Text.from_lists([[20] * 65])})
    with pytest.raises(ContractError, match=r"segment 'S' reaches position 65, and the query transformer has 64"):
        model([stream], features(1, dtype=torch.float32))


def test_options_that_cannot_be_built_are_named() -> None:
    with pytest.raises(SpecError, match=r"hidden_size 770 is not divisible by num_heads 12"):
        build_mqformer(MQFormerOptions(hidden_size=770), BuildContext("meta", 8))
    with pytest.raises(SpecError, match=r"width of image tokens is unknown"):
        build_qformer(QFormerOptions(), BuildContext("meta"))


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_blip2_checkpoint_starts_an_mqformer(tmp_path) -> None:
    """Trunk and visual queries come from the file; grounding parts and new vocabulary rows keep their
    initial values.
    """
    from safetensors.torch import save_file

    sizes = {"hidden_size": 32, "num_layers": 3, "num_heads": 2, "intermediate_size": 48, "max_positions": 64}
    blip2 = build_qformer(QFormerOptions(num_visual=4, vocab_size=290, **sizes), BuildContext("random", 24))
    save_file({key: value.clone() for key, value in to_upstream(blip2).items()}, tmp_path / "blip2.safetensors")
    options = MQFormerOptions(num_visual=4, num_grounding=3, vocab_size=293, **sizes)
    model = build_mqformer(options, BuildContext("random", 24, {"detector": 20}))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_checkpoint(model, tmp_path / "blip2.safetensors")
    assert torch.equal(model.query_tokens_QD[:4], blip2.query_tokens_QD)
    assert torch.equal(model.query_tokens_QD[4:], before["query_tokens_QD"][4:])
    assert torch.equal(model.word_embeddings.weight[:290], blip2.word_embeddings.weight[:290])
    assert torch.equal(model.word_embeddings.weight[290:], before["word_embeddings.weight"][290:])
    assert report.partly == {"query_tokens_QD": 4, "word_embeddings.weight": 290, "token_head.bias": 290}
    assert report.initialized
    assert all("local_attention" in name for name in report.initialized)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path) -> None:
    model = small_model(local_dims={"detector": 20})
    state = to_upstream(model)
    with pytest.raises(WeightsError, match=r"none of the known namings"):
        from_upstream({"a.weight": torch.zeros(1)}, model)
    half = {key: value for key, value in state.items() if "layer.0.attention.attention.key" not in key}
    with pytest.raises(WeightsError, match=r"self_attention.qkv.weight needs .*key.weight.*; the checkpoint has only"):
        from_upstream(half, model)
    gone = {key: value for key, value in state.items() if "layer.1.output_query.dense" not in key}
    with pytest.raises(WeightsError, match=r"has nothing for layers.1.query_ffn.down.weight"):
        load_converted(model, from_upstream(gone, model))
    untied = state | {"qformer.cls.predictions.decoder.weight": state["qformer.cls.predictions.decoder.weight"] + 1}
    with pytest.raises(WeightsError, match=r"decoder.weight differs from .*word_embeddings"):
        from_upstream(untied, model)
    other = small_model(local_dims={"detector": 20}, intermediate_size=64)
    with pytest.raises(WeightsError, match=r"is \(64, 48\) in the model and \(96, 48\) in the checkpoint"):
        load_converted(other, from_upstream(state, other))
    with pytest.raises(WeightsError, match=r"neither a \.safetensors file nor a folder that holds"):
        load_checkpoint(model, tmp_path / "none.bin")
    with pytest.raises(WeightsError, match=r"released-stage1 naming has no place for .*segmenter"):
        to_upstream(small_model())
