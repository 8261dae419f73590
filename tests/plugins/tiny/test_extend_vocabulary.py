"""A language model whose tokenizer has new words: everything that it knew is where it was, and new rows are like the
known ones.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lyrics.core.errors import WeightsError
from lyrics.core.language.tokenizers import builtin_tokenizer
from lyrics.core.loading import build_model
from lyrics.core.weights.pretrained import locate_checkpoint
from lyrics.plugins.tiny.extend_vocabulary import carry_over
from lyrics.plugins.tiny.presets import TINY_LANGUAGE_MODEL, lyrics_tiny


def language_model(checkpoint: str):
    alone = {
        "refiner": None,
        "language_model.options.adaptation": "full",
        "language_model.options.checkpoint": checkpoint,
    }
    return build_model(lyrics_tiny().with_overrides(alone)).eval().language_model


#: Words that an older tokenizer did not have, as its tokens begin with a space.
UNKNOWN = {f"\u0120{word}" for word in ("striped", "dotted", "outline", "ground", "upright", "leaning")}


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """What ships, as it would be without some words: its other tokens have other numbers then."""
    folder = tmp_path_factory.mktemp("older") / "language-model"
    shutil.copytree(locate_checkpoint(TINY_LANGUAGE_MODEL, downloads=False), folder)
    held = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    numbers = held["model"]["vocab"]
    assert numbers.keys() >= UNKNOWN
    kept = [token for token in sorted(numbers, key=numbers.get) if token not in UNKNOWN]
    held["model"]["vocab"] = now = {token: number for number, token in enumerate(kept)}
    for token in held["added_tokens"]:
        token["id"] = now[token["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(held), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    (name,) = (name for name in tensors if "embed_tokens" in name)
    rows_VD = tensors[name].clone()
    rows_VD[: len(kept)] = tensors[name][[numbers[token] for token in kept]]
    save_file({**tensors, name: rows_VD}, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def carried(older, tmp_path_factory):
    folder = tmp_path_factory.mktemp("carried")
    return folder, carry_over(older, folder)


def test_every_known_token_keeps_its_row_and_nothing_else_changes(older, carried):
    folder, new = carried
    before, after = language_model(older), language_model(str(folder))
    old, now = before.tokenizer.get_vocab(), after.tokenizer.get_vocab()
    assert now == builtin_tokenizer("words", ["<pad>", "<s>", "</s>"]).get_vocab()
    assert set(new) == now.keys() - old.keys() == UNKNOWN
    old_VD, now_VD = (one.model.get_input_embeddings().weight for one in (before, after))
    for token in old.keys() & now.keys():
        assert torch.equal(old_VD[old[token]], now_VD[now[token]]), token
    packaged = load_file(locate_checkpoint(TINY_LANGUAGE_MODEL, downloads=False) / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "embed_tokens" not in name:
            assert torch.equal(tensor, packaged[name].float()), name


def test_new_rows_are_of_the_spread_of_the_known_and_the_same_every_time(older, carried, tmp_path):
    folder, new = carried
    one = language_model(str(folder))
    rows_VD, now = one.model.get_input_embeddings().weight.detach(), one.tokenizer.get_vocab()
    known_VD = rows_VD[[index for token, index in now.items() if token not in new]]
    new_VD = rows_VD[[now[token] for token in new]]
    assert 0.8 < float(new_VD.std() / known_VD.std()) < 1.25
    carry_over(older, tmp_path)
    again, first = (load_file(path / "model.safetensors") for path in (tmp_path, folder))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_known_words_are_read_as_before(older, carried):
    before, after = language_model(older), language_model(str(carried[0]))
    text = "<br><T>red star</T><Bbox>(5,20),(310,999)</Bbox></br>\nWhat color is the star?"
    found = []
    for one in (before, after):
        ids_BL = torch.tensor([one.tokenizer.encode(text)])
        with torch.no_grad():
            logits_V = one(one.embed(ids_BL), torch.ones_like(ids_BL))[0, -1]
        found.append((logits_V.max(), one.tokenizer.decode([int(logits_V.argmax())])))
    assert found[0][1] == found[1][1]
    torch.testing.assert_close(found[0][0], found[1][0])


def test_carrying_over_twice_changes_nothing(carried, tmp_path):
    assert carry_over(str(carried[0]), tmp_path) == []
    again, first = (load_file(path / "model.safetensors") for path in (tmp_path, carried[0]))
    rows = len(builtin_tokenizer("words", ["<pad>", "<s>", "</s>"]))
    name = next(name for name in first if "embed_tokens" in name)
    assert torch.equal(first[name][:rows], again[name][:rows])


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(WeightsError, match="nowhere"):
        carry_over(str(tmp_path / "nowhere"), tmp_path / "out")
