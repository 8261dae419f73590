"""What parts of the released 14B need beside their tensors: tokenizers and lists that are given, stand-ins, and input
that does not fit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from lyrics import LyricsModel
from lyrics.cli import app
from lyrics.core.build import build_resolved
from lyrics.core.contracts import BuildContext
from lyrics.core.conversion.convert import ConversionReport, convert
from lyrics.core.conversion.formats import find_format
from lyrics.core.conversion.whole_model import plan_model, read_beside
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.language.prompts import encode_words
from lyrics.core.resolve import resolve
from lyrics.core.spec import dump
from lyrics.core.stage1.streams import SpecialTokens
from lyrics.plugins.ram_plus import RamOptions
from lyrics.plugins.ram_plus.public import convert_released
from lyrics.plugins.ram_plus.tagger import build_ram
from tests.core.conversion.converting import write_lists
from tests.core.conversion.test_whole_model import FORMAT, Released, find_parity
from tests.core.small import drawn

Given = dict[str, Path]
WORDS = ("a", "dog", "red", "kite", "what", "is", "it", "on", "grass", "blue", "##s", "##ing")
SYMBOLS = tuple("bcdefghijklmnopqrstuvwxyz0123456789[](),:;!'-/<>|_{}&#*+=@^~`$%")
QUESTION = "what is it? a red dog, flying kites!"


def bert(folder: Path, size: int) -> Path:
    """A word-piece tokenizer with BERT's special tokens where BERT has them, as transformers saves it; unused words
    fill it up.
    """
    vocabulary = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    pieces = [*WORDS, *SYMBOLS, *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789")]
    vocabulary |= {".": 1012, "?": 1029} if size > 1029 else {".": 104, "?": 105}
    vocabulary |= {piece: 110 + index for index, piece in enumerate(pieces)}
    taken = set(vocabulary.values())
    vocabulary |= {f"[unused{index}]": index for index in range(size) if index not in taken}
    assert sorted(vocabulary.values()) == list(range(size))
    tokenizer = BertTokenizer(vocab=vocabulary)
    tokenizer.save_pretrained(folder)
    return folder


def llama(folder: Path, size: int, **roles: str) -> Path:
    """A byte-level BPE with merges, ``<s>`` and ``</s>``, and no padding token, as Llama's has none."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    text = "what is it? a red dog on the green grass, flying its kites; the quick brown fox jumps over lazy dogs " * 3
    tokenizer.train_from_iterator([text], trainer)
    assert tokenizer.get_vocab_size() == size
    roles = roles or {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def released() -> Released:
    return Released(find_parity)


@pytest.fixture(scope="module")
def given(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("given")
    (folder / "ram").mkdir()
    write_lists(folder / "ram", released.ram)
    return {
        "language_model": llama(folder / "llama", 300),
        "query_transformer": bert(folder / "bert", 299),
        "refiner.detector": bert(folder / "large-bert", 1286),
        "refiner.tagger": folder / "ram",
    }


@pytest.fixture(scope="module")
def converted(
    released: Released, given: Given, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ConversionReport, Path]:
    return released.convert(released.write(tmp_path_factory.mktemp("converted")), beside=given)


@pytest.fixture(scope="module")
def loaded(converted: tuple[ConversionReport, Path]) -> LyricsModel:
    return LyricsModel.from_pretrained(converted[1]).eval()


def test_the_folder_loads_with_what_was_given(released: Released, given: Given, loaded: LyricsModel) -> None:
    about = released.ram.about
    assert list(loaded.refiner.tagger.tags) == about["tag_list"]  # type: ignore[union-attr]
    assert list(loaded.refiner.tagger.thresholds) == pytest.approx([float(t) for t in about["thresholds"]])  # type: ignore[union-attr]

    source = BertTokenizer.from_pretrained(given["query_transformer"])
    reads = loaded.query_transformer.tokenizer
    ids = encode_words(reads, QUESTION)
    assert ids == encode_words(source, QUESTION)
    assert reads.convert_ids_to_tokens(ids)[:6] == ["what", "is", "it", "?", "a", "red"]
    # One word more than BERT's: [DEC], at the end, as in the checkpoint.
    assert SpecialTokens.from_tokenizer(reads) == SpecialTokens(0, 101, 102, 103, -1, 299, -1)
    assert loaded._words([QUESTION]) == [ids]

    speaks, wanted = loaded.language_model.tokenizer, PreTrainedTokenizerFast.from_pretrained(given["language_model"])
    assert encode_words(speaks, QUESTION) == encode_words(wanted, QUESTION)
    assert len(encode_words(speaks, QUESTION)) < len(QUESTION)
    assert speaks.decode(encode_words(speaks, QUESTION)) == QUESTION
    assert (wanted.pad_token_id, speaks.pad_token_id) == (None, speaks.unk_token_id)

    writer = loaded.refiner.detector.writer  # type: ignore[union-attr]
    assert writer.delimiters == (101, 102, 1012, 1029)
    (prompt,) = writer.prompts(writer.tokens(["Red dog", "kite"]))
    assert writer.tokenizer.convert_ids_to_tokens(list(prompt.input_ids)) == [
        "[CLS]", "red", "dog", ".", "kite", ".", "[SEP]",
    ]  # fmt: skip


def test_a_folder_with_what_was_given_answers(loaded: LyricsModel) -> None:
    (answer,) = loaded.generate([drawn()], [QUESTION], phrases=[["red dog"]], max_new_tokens=3)
    assert isinstance(answer.text, str)


def test_the_report_names_files_and_words_that_are_not_used(
    converted: tuple[ConversionReport, Path], given: Given
) -> None:
    report, out = converted
    assert not any("stand-in" in note for note in report.notes)
    assert [note for note in report.notes if "never used" in note] == [
        f"the tokenizer of {given['language_model']} has 300 tokens, the checkpoint 301 words; the last 1 are never "
        "used"
    ]
    assert set(report.files) == {
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file() and path.suffix != ".safetensors"
    } - {"conversion.json", "model.safetensors.index.json", "spec.json"}
    assert {"parts/tagger/classes.json", "tokenizers/language_model/tokenizer.json"} <= set(report.files)


@pytest.fixture(scope="module")
def read(released: Released) -> Callable[[Given], tuple[tuple[str, ...], LyricsModel]]:
    """Reads what is given into a model, as the conversion does; returns the notes and the model, which is always the
    same.
    """
    resolved = resolve(released.spec)
    model = build_resolved(LyricsModel, resolved, weights="meta")
    shapes = {key: tensor.to("meta") for key, tensor in released.state.items()}
    _, beside = plan_model(model, resolved, released.state, shapes, find_format(FORMAT))
    return lambda given: (read_beside(model, beside, given), model)


def test_every_stand_in_is_named_with_the_option_for_the_real_one(read: Any, given: Given) -> None:
    notes, _ = read({})
    assert len(notes) == 4
    for part in given:
        (note,) = (note for note in notes if note.startswith(f"{part}: "))
        assert "is in no checkpoint, so a stand-in was written: " in note
        assert f"--with {part}=FOLDER" in note
    notes, _ = read({"refiner.tagger": given["refiner.tagger"]})
    assert sorted(note.partition(":")[0] for note in notes) == sorted(set(given) - {"refiner.tagger"})


def test_one_threshold_of_the_spec_stays(released: Released, given: Given) -> None:
    options = RamOptions(**released.ram.options, threshold=0.25)
    plan = convert_released(released.state, options, BuildContext("meta"))
    tagger = build_ram(options, BuildContext("meta"))
    assert plan.beside is not None
    assert plan.beside.read(given["refiner.tagger"], tagger) == ()
    assert list(tagger.tags) == released.ram.about["tag_list"]
    assert tagger.thresholds == (0.25,) * len(tagger.tags)


# --- what does not fit ---


@pytest.mark.parametrize("part", ["language_model", "query_transformer", "refiner.detector"])
def test_a_folder_without_a_tokenizer(read: Any, tmp_path: Path, part: str) -> None:
    (tmp_path / "readme.md").write_text("nothing")
    with pytest.raises(WeightsError, match=rf"{tmp_path}: holds no tokenizer; it should have one of tokenizer\.json, "):
        read({part: tmp_path})
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    with pytest.raises(WeightsError, match=r"can be read: .* tokenizer_config\.json included\."):
        read({part: tmp_path})
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nothing"}}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(WeightsError, match=rf"{tmp_path}: not a tokenizer that can be read: "):
        read({part: tmp_path})


@pytest.mark.parametrize(
    ("part", "words"), [("language_model", 301), ("query_transformer", 300), ("refiner.detector", 1286)]
)
def test_a_tokenizer_of_more_tokens_than_words(read: Any, tmp_path: Path, part: str, words: int) -> None:
    folder = bert(tmp_path / "bert", 1290)
    with pytest.raises(
        WeightsError, match=rf"{folder}: its tokenizer has 1290 tokens, but the checkpoint has only {words} words\."
    ):
        read({part: folder})


def test_a_language_model_needs_a_token_that_ends(read: Any, tmp_path: Path) -> None:
    folder = llama(tmp_path / "llama", 300, unk_token="<unk>")
    with pytest.raises(WeightsError, match=rf"{folder}: its tokenizer names no token that ends a text"):
        read({"language_model": folder})


@pytest.mark.parametrize("name", ["ram_tag_list.txt", "ram_tag_list_threshold.txt"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_list_of_the_wrong_length_names_both_numbers(
    released: Released, read: Any, tmp_path: Path, name: str, change: int
) -> None:
    write_lists(tmp_path, released.ram)
    lines = (tmp_path / name).read_text().splitlines()
    count = len(lines)
    lines = lines[:change] if change < 0 else [*lines, "0.5"]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(WeightsError, match=rf"{name}: has {count + change} lines, but the tagger knows {count} tags"):
        read({"refiner.tagger": tmp_path})


def test_lists_that_are_missing_or_hold_something_else(released: Released, read: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"{tmp_path}: has no ram_tag_list\.txt .*Put it there; upstream has it at"):
        read({"refiner.tagger": tmp_path})
    write_lists(tmp_path, released.ram)
    thresholds = (tmp_path / "ram_tag_list_threshold.txt").read_text().splitlines()
    (tmp_path / "ram_tag_list_threshold.txt").write_text("\n".join(["1.5", *thresholds[1:]]))
    with pytest.raises(WeightsError, match=r"ram_tag_list_threshold\.txt, line 1: '1\.5' is not a probability"):
        read({"refiner.tagger": tmp_path})


def test_parts_and_folders_that_are_not_there(released: Released, read: Any, given: Given, tmp_path: Path) -> None:
    source = released.write(tmp_path)
    with pytest.raises(
        SpecError, match=r"the model has no part 'refiner\.tager'\. Did you mean 'refiner\.tagger'\? Its"
    ):
        released.convert(source, beside={"refiner.tager": given["refiner.tagger"]})
    with pytest.raises(WeightsError, match=r"nowhere: no such folder; it was given for language_model\."):
        released.convert(source, beside={"language_model": tmp_path / "nowhere"})
    with pytest.raises(
        SpecError, match=r"image_encoder needs nothing beside its tensors; what can be given is for refiner\.t"
    ):
        read({"image_encoder": tmp_path})
    with pytest.raises(SpecError, match=r"'ram' is of one part; what it needs beside its tensors lies beside SRC"):
        convert(source, tmp_path / "other", "ram", beside={"refiner.tagger": given["refiner.tagger"]})
    assert not (tmp_path / "out").exists()


# --- the command ---


def test_the_command_with_one_part_and_stand_ins_for_the_others(
    released: Released, given: Given, tmp_path: Path
) -> None:
    source = released.write(tmp_path)
    dump(released.spec, tmp_path / "spec.yaml")
    command = ["convert", str(source), str(tmp_path / "out"), "--from", FORMAT, "--model", str(tmp_path / "spec.yaml")]
    done = CliRunner().invoke(app, [*command, "--with", f"refiner.detector={given['refiner.detector']}"])
    assert done.exit_code == 0, done.output
    assert "beside the weights: parts/tagger/classes.json" in done.stdout
    assert done.stdout.count("note: ") == done.stdout.count("stand-in was written") == 3
    out = tmp_path / "out"
    assert json.loads((out / "parts/tagger/classes.json").read_text())["tags"][:2] == ["tag 0", "tag 1"]
    assert json.loads((out / "parts/detector/delimiters.json").read_text()) == [101, 102, 1012, 1029]
    for name in ("tokenizers/language_model", "tokenizers/query_transformer", "parts/detector"):
        assert (out / name / "tokenizer.json").is_file()
    mixed = LyricsModel.from_pretrained(out)
    detector, reader = mixed.refiner.detector.writer.tokenizer, mixed.query_transformer.tokenizer  # type: ignore[union-attr]
    assert (len(encode_words(detector, "red dog")), len(encode_words(reader, "red dog"))) == (2, 7)


@pytest.mark.parametrize("words", [["language_model"], ["=folder"], ["language_model="], ["a=b", "a=c"]])
def test_what_is_written_wrongly(tmp_path: Path, words: list[str]) -> None:
    arguments = [argument for word in words for argument in ("--with", word)]
    done = CliRunner().invoke(app, ["convert", "x", str(tmp_path / "out"), "--from", FORMAT, *arguments])
    assert isinstance(done.exception, SpecError)
    assert f"--with {words[-1]}" in str(done.exception)
