"""Generation options: greedy as it always was, transformers' options by name, samples that a seed fixes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import torch
from transformers import GenerationConfig

from lyrics.core.answers import Confidence
from lyrics.core.errors import ContractError, PromptError, SpecError
from lyrics.core.language.answering import answer_ids
from lyrics.core.language.generation import _RULES, Decoding, GenerationOptions, decoding
from lyrics.core.language.prompting import checked_prompt
from lyrics.core.model import LyricsModel
from tests.core.small import drawn
from tests.core.test_model_steps import made

QUESTIONS = ("what is this?", "where is the red circle?", "how many?")


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    return made()


def new_ids(model: LyricsModel, monkeypatch: pytest.MonkeyPatch, call: Any) -> torch.Tensor:
    """Ids that a call makes the language model write."""
    seen: list[torch.Tensor] = []
    kind = type(model.language_model)
    generate = kind.generate_scored

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        ids, log_probs = generate(self, *arguments, **options)
        seen.append(ids)
        return ids, log_probs

    with monkeypatch.context() as patch:
        patch.setattr(kind, "generate_scored", watched)
        call()
    (ids,) = seen
    return ids


def test_greedy_is_the_default_and_what_it_was_before_there_were_options(
    model: LyricsModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is what ``CausalLM.generate`` called before: transformers' ``generate`` with these five numbers."""
    lm = model.language_model
    given: list[Any] = []
    kind = type(lm)
    generate = kind.generate_scored
    with monkeypatch.context() as patch:
        patch.setattr(kind, "generate_scored", lambda self, *a, **k: given.append((a, k)) or generate(self, *a, **k))
        pictures = [drawn(), drawn(50, 80, "blue"), None]
        answers = model.generate(pictures, QUESTIONS, max_new_tokens=12)
    ((embeddings, mask), options) = given[0]
    assert options == {"max_new_tokens": 12}
    before = lm.model.generate(
        inputs_embeds=embeddings,
        attention_mask=mask,
        generation_config=GenerationConfig(
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=lm.tokenizer.pad_token_id,
            bos_token_id=lm.tokenizer.bos_token_id,
            eos_token_id=lm.ends,
        ),
    )
    assert torch.equal(lm.generate(embeddings, mask, max_new_tokens=12), before)
    texts = lm.tokenizer.batch_decode(before, skip_special_tokens=True)
    assert [answer.text for answer in answers] == [model.generate(p, q, max_new_tokens=12).text for p, q in zip(
        pictures, QUESTIONS, strict=True)]  # fmt: skip
    assert all(text.startswith(answer.text) or answer.text in text for text, answer in zip(texts, answers, strict=True))
    for same in ({"do_sample": False}, {"num_beams": 1}, {"generation_config": GenerationConfig(max_new_tokens=12)}):
        more: dict[str, Any] = {"max_new_tokens": 12} | same
        assert model.generate(pictures, QUESTIONS, **more) == answers


def test_options_mean_what_they_mean_in_transformers(model: LyricsModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model.language_model
    encoded = model.look([drawn()], ["what?"])
    from lyrics.core.language.prompts import Exchange
    from lyrics.core.language.soft_prompts import embed

    prompt = checked_prompt([Exchange("what?", None, (0,))], encoded, 10, model.spec, model.language_model)
    soft = embed([prompt], encoded.soft_tokens_PQD, lm, "left")
    cases: tuple[dict[str, Any], ...] = (
        {"num_beams": 3},
        {"num_beams": 2, "length_penalty": -1.0, "early_stopping": True},
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 10},
        {"do_sample": True, "temperature": 3.0, "top_p": 0.8, "top_k": 20},
    )
    greedy = new_ids(model, monkeypatch, lambda: model.generate(drawn(), "what?", max_new_tokens=10))
    different = 0
    for options in cases:
        seed = 7 if "do_sample" in options else None
        found = new_ids(
            model,
            monkeypatch,
            lambda o=options, s=seed: model.generate(drawn(), "what?", max_new_tokens=10, seed=s, **o),
        )
        with torch.random.fork_rng():
            torch.manual_seed(7)
            expected = lm.model.generate(
                inputs_embeds=soft.embeddings_BLD,
                attention_mask=soft.mask_BL,
                max_new_tokens=10,
                pad_token_id=lm.tokenizer.pad_token_id,
                eos_token_id=lm.ends,
                **{"do_sample": False, **options},
            )
        assert torch.equal(found, expected), options
        by_config = new_ids(
            model,
            monkeypatch,
            lambda o=options, s=seed: model.generate(
                drawn(), "what?", generation_config=GenerationConfig(max_new_tokens=10, **o), seed=s
            ),
        )
        assert torch.equal(by_config, found), options
        different += not torch.equal(found, greedy)
    assert different >= 3, "options change what is written"


def test_a_seed_fixes_the_sample_and_nothing_outside_is_disturbed(model: LyricsModel) -> None:
    def said(**options: Any) -> str:
        return model.generate(drawn(), "what?", max_new_tokens=16, temperature=5.0, **options).text

    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = said(seed=1)
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(99)
    assert said(seed=1) == first == model.chat(drawn()).ask("what?", max_new_tokens=16, temperature=5.0, seed=1).text
    assert len({said(seed=seed) for seed in range(4)}) > 1
    torch.manual_seed(3)
    assert len({said() for _ in range(4)}) > 1, "without a seed samples are new ones"
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_beam": 2}, TypeError, r"no generation option 'num_beam'. Did you mean 'num_beams'\? There are: max_new"),
        ({"num_return_sequences": 2}, TypeError, "no generation option 'num_return_sequences'"),
        ({"num_beams": 0}, SpecError, "num_beams=0: must be an integer, 1 or more"),
        ({"num_beams": 2.5}, SpecError, "num_beams=2.5: must be an integer"),
        ({"temperature": 0}, SpecError, "temperature=0: must be a number above 0"),
        ({"temperature": float("nan")}, SpecError, "temperature=nan: must be a number above 0"),
        ({"temperature": "hot"}, SpecError, "temperature='hot': must be a number above 0"),
        ({"top_p": 1.5}, SpecError, "top_p=1.5: must be a number above 0 and up to 1"),
        ({"top_k": -1}, SpecError, "top_k=-1: must be an integer, 0"),
        ({"min_p": 2}, SpecError, "min_p=2: must be a number from 0 to 1"),
        ({"do_sample": 1}, SpecError, "do_sample=1: must be True or False"),
        ({"do_sample": False, "top_p": 0.5}, SpecError, "top_p=0.5: is for sampling, and do_sample=False"),
        ({"repetition_penalty": 0}, SpecError, "repetition_penalty=0: must be a number above 0"),
        ({"length_penalty": None, "early_stopping": "now"}, SpecError, "early_stopping='now': must be True, False or"),
        ({"no_repeat_ngram_size": -1}, SpecError, "no_repeat_ngram_size=-1"),
        ({"min_new_tokens": 65}, SpecError, "min_new_tokens=65: is more than max_new_tokens=64"),
        ({"max_new_tokens": 0}, PromptError, "max_new_tokens must be 1 or more, not 0"),
        ({"max_new_tokens": "7"}, PromptError, "max_new_tokens must be 1 or more, not '7'"),
        ({"temperature": 1.0, "seed": -1}, SpecError, "seed=-1: must be an integer, 0 or more"),
        ({"generation_config": {"num_beams": 2}}, SpecError, "must be transformers' GenerationConfig, not dict"),
        (
            {"generation_config": GenerationConfig(num_beams=2, num_return_sequences=2)},
            SpecError,
            r"generation_config.num_return_sequences=2: is not supported. There are: do_sample, temperature",
        ),
        ({"generation_config": GenerationConfig(stop_strings=["."])}, SpecError, "generation_config.stop_strings="),
    ],
)
def test_what_cannot_be_met_is_one_sentence_before_anything_runs(
    model: LyricsModel, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.generate("nowhere.png", "what?", **options)


def test_several_beams_cannot_be_followed(model: LyricsModel) -> None:
    with pytest.raises(
        SpecError, match=r"num_beams=2: several beams are compared at their ends.*leave out num_beams, or on_text"
    ):
        model.chat("nowhere.png").ask("what?", on_text=print, num_beams=2)
    pieces: list[str] = []
    answer = model.chat(drawn()).ask("what?", on_text=pieces.append, temperature=3.0, seed=1, max_new_tokens=8)
    assert "".join(pieces).strip().rstrip("\N{REPLACEMENT CHARACTER}") == answer.text.rstrip(
        "\N{REPLACEMENT CHARACTER}"
    )


def test_a_language_model_that_knows_no_options_is_named(model: LyricsModel, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(model.language_model)
    generate = kind.generate

    def greedy(self: Any, embeddings: Any, mask: Any, *, max_new_tokens: int, on_token: Any = None) -> Any:
        return generate(self, embeddings, mask, max_new_tokens=max_new_tokens, on_token=on_token)

    monkeypatch.setattr(kind, "generate", greedy)
    assert model.generate(drawn(), "what?", max_new_tokens=2).text is not None
    with pytest.raises(ContractError, match="language_model: 'causal-lm' decodes greedily only"):
        model.generate(drawn(), "what?", max_new_tokens=2, num_beams=2)


def test_what_has_no_effect_is_said() -> None:
    with pytest.warns(UserWarning, match="seed=3: has no effect, as nothing is drawn"):
        assert decoding({}, seed=3).config is None
    with pytest.warns(UserWarning, match="generation_config.max_length: is not read"):
        decoding({}, generation_config=GenerationConfig(max_length=99))


def test_options_by_name_take_precedence_and_a_configuration_says_what_ends_an_answer() -> None:
    given = GenerationConfig(
        num_beams=2, temperature=0.5, max_new_tokens=9, eos_token_id=5, pad_token_id=0, use_cache=True
    )
    how = decoding({"num_beams": 4}, generation_config=given, seed=2)
    assert how.config is not None
    assert (how.max_new_tokens, how.seed) == (9, 2)
    assert (how.config.num_beams, how.config.temperature, how.config.do_sample) == (4, 0.5, True)
    assert how.config.eos_token_id == 5
    assert decoding({"num_beams": 4}, generation_config=given, max_new_tokens=3).max_new_tokens == 3
    assert decoding({}, default_tokens=256).max_new_tokens == 256


def test_every_option_is_transformers_and_has_a_rule() -> None:
    assert set(get_type_hints(GenerationOptions)) == set(_RULES)
    assert set(_RULES) <= set(GenerationConfig().to_dict())


# --- how sure the language model was ---


def test_a_confidence_does_not_depend_on_what_is_answered_beside_it(model: LyricsModel) -> None:
    pictures = [drawn(), drawn(50, 80, "blue"), None, drawn(30, 30, "green")]
    questions = ["what is this?", "why?", "a much longer question about nothing at all?", "and this?"]
    alone = [model.generate(one, text, max_new_tokens=12) for one, text in zip(pictures, questions, strict=True)]
    for order in ([0, 1, 2, 3], [3, 1, 0], [2, 2, 1]):
        found = model.generate([pictures[n] for n in order], [questions[n] for n in order], max_new_tokens=12)
        assert found == [alone[n] for n in order]
        for one, n in zip(found, order, strict=True):
            assert one.confidence is not None
            assert alone[n].confidence is not None
            assert one.confidence.mean_log_prob == pytest.approx(alone[n].confidence.mean_log_prob, abs=2e-5)
            assert one.confidence.min_log_prob == pytest.approx(alone[n].confidence.min_log_prob, abs=2e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"temperature": 3.0, "seed": 1}], ids=str)
def test_log_probabilities_are_those_of_the_models_own_logits(model: LyricsModel, options: dict[str, Any]) -> None:
    """Of the tokens that were chosen, however they were chosen; nothing behind the end of an answer."""
    lm = model.language_model
    torch.manual_seed(0)
    row = lm.embed(torch.tensor([[1, 5, 6, 9], [1, 7, 8, 11]]))
    mask = torch.ones(2, 4, dtype=torch.long)
    ends = list(range(0, lm.tokenizer.vocab_size, 3))  # so that some answer ends before the other
    how = decoding({name: value for name, value in options.items() if name != "seed"}, seed=options.get("seed"))
    config = GenerationConfig() if how.config is None else how.config
    config.eos_token_id = ends
    with how.drawing(torch.device("cpu")):
        ids, log_probs = lm.generate_scored(row, mask, max_new_tokens=9, generation_config=config)
    assert ids.shape == log_probs.shape
    for own, said, prompt in zip(ids, log_probs, row, strict=True):
        length = next((n + 1 for n, token in enumerate(own.tolist()) if token in ends), len(own))
        assert (~said.isnan()).sum() == length
        assert said[length:].isnan().all()
        whole = torch.cat([prompt, lm.embed(own[:length])])[None]
        with torch.no_grad():
            logits = lm(whole, torch.ones(1, whole.shape[1], dtype=torch.long))[0, 3:-1]
        expected = logits.log_softmax(-1).gather(1, own[:length, None])[:, 0]
        assert torch.allclose(said[:length], expected, atol=1e-4)


def test_a_language_model_that_does_not_say_gives_no_confidence(model: LyricsModel) -> None:
    lm = model.language_model
    soft = SimpleNamespace(embeddings_BLD=lm.embed(torch.tensor([[1, 5], [1, 7]])), mask_BL=torch.ones(2, 2).long())
    prompts: Any = [SimpleNamespace(keys=(1, 5)), SimpleNamespace(keys=(1, 7))]
    silent: Any = SimpleNamespace(generate=lm.generate)
    ids, log_probs = answer_ids(prompts, soft, Decoding(3), "silent", silent)  # type: ignore[arg-type]
    whole, said = answer_ids(prompts, soft, Decoding(3), "said", lm)  # type: ignore[arg-type]
    assert torch.equal(ids, whole)
    assert log_probs == [[], []]
    assert all(said)
    assert Confidence.of(log_probs[0]) is None
