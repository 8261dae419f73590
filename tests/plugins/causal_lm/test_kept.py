"""Answers that go on from a prompt that was read before: the same ids, and only new places are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    PreTrainedConfig,
)

from lyrics.core.language.past import Past
from lyrics.core.language.tokenizers import byte_tokenizer
from lyrics.plugins.causal_lm import CausalLMOptions
from lyrics.plugins.causal_lm.build import SPECIAL_TOKENS
from lyrics.plugins.causal_lm.model import CausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "convolutions": Lfm2Config(**SIZES, layer_types=["conv", "full_attention"] * 2, conv_L_cache=5),
    "sliding windows": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=8),
    "opt": OPTConfig(
        vocab_size=300, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    ),
    "no keys and values": MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4),
}
#: Those whose cache can be cut to what another prompt begins with.
CUT = ("llama", "opt")
NEW = 6


def made(family: str) -> CausalLM:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=1.0)
    model.generation_config.eos_token_id = None
    options = CausalLMOptions(adaptation="full", chat_template="plain")
    return CausalLM(model, byte_tokenizer(SPECIAL_TOKENS), options)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def language_model(family: str) -> CausalLM:
    return made(family)


class Asking:
    """Answers of a language model, with how many places were read for each."""

    def __init__(self, language_model: CausalLM) -> None:
        self.language_model = language_model
        self.past = Past()
        self.read: list[int] = []

    def __call__(self, ids: Sequence[int], **options: Any) -> list[int]:
        embeddings = self.language_model.embed(torch.tensor([ids]))
        places: list[int] = []

        def count(module: Any, arguments: Any, named: dict[str, Any]) -> None:
            given = named.get("inputs_embeds")
            places.append((given if given is not None else named["input_ids"]).shape[1])

        network: Any = self.language_model.model
        hook = network.register_forward_pre_hook(count, with_kwargs=True)
        try:
            found = self.language_model.resume(embeddings, ids, self.past, max_new_tokens=NEW, **options)
        finally:
            hook.remove()
        self.read.append(places[0])
        return found[0].tolist()

    def anew(self, ids: Sequence[int], **options: Any) -> list[int]:
        embeddings = self.language_model.embed(torch.tensor([ids]))
        mask = torch.ones(1, len(ids), dtype=torch.long)
        found = self.language_model.generate(embeddings, mask, max_new_tokens=NEW, **options)
        return found[0].tolist()


@pytest.fixture
def asking(language_model: CausalLM) -> Asking:
    return Asking(language_model)


def tokens(seed: int, count: int) -> list[int]:
    return torch.randint(3, 250, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_a_longer_conversation_reads_what_is_new(asking: Asking, family: str) -> None:
    prompt = tokens(0, 20)
    for turn in range(3):
        answer = asking(prompt)
        assert answer == asking.anew(prompt)
        prompt = [*prompt, *answer, *tokens(turn + 1, 5)]
    # What was chosen last was not read yet.
    assert asking.read == ([20, 31, 42] if family == "no keys and values" else [20, 6, 6])


def test_a_prompt_that_differs_earlier_is_read_from_there(asking: Asking, family: str) -> None:
    prompt = tokens(0, 20)
    asking(prompt)
    other = [*prompt[:12], *tokens(7, 9)]
    assert asking(other) == asking.anew(other)
    assert asking.read[1] == (9 if family in CUT else 21)
    unlike = [tokens(9, 1)[0] + 1, *prompt]
    assert asking(unlike) == asking.anew(unlike)
    assert asking.read[2] == 21


def test_the_same_prompt_and_a_shorter_one_read_one_place_at_least(asking: Asking, family: str) -> None:
    prompt = tokens(0, 12)
    first = asking(prompt)
    assert asking(prompt) == first
    shorter = prompt[:5]
    assert asking(shorter) == asking.anew(shorter)
    assert asking.read == ([12, 1, 1] if family in CUT else [12, 12, 5])


@pytest.mark.parametrize("change", ["written to", "another dtype"])
def test_weights_that_changed_read_everything(change: str) -> None:
    asking = Asking(made("llama"))
    prompt = tokens(0, 12)
    answer = asking(prompt)
    changes: dict[str, Callable[[], Any]] = {
        "written to": lambda: asking.language_model.model.lm_head.weight.add_(1e-3),
        "another dtype": lambda: asking.language_model.double(),
    }
    with torch.no_grad():
        changes[change]()
    longer = [*prompt, *answer, 40]
    assert asking(longer) == asking.anew(longer)
    assert asking.read == [12, len(longer)]


def test_several_beams_keep_nothing() -> None:
    asking = Asking(made("llama"))
    prompt = tokens(0, 12)
    asking(prompt)
    beams = GenerationConfig(do_sample=False, num_beams=3)
    assert asking(prompt, generation_config=beams) == asking.anew(prompt, generation_config=beams)
    assert asking.past.state is None
    assert asking.past.keys == ()


def test_an_answer_that_is_interrupted_keeps_nothing() -> None:
    asking = Asking(made("llama"))
    prompt = tokens(0, 12)
    asking(prompt)

    def stop(token: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asking(prompt, on_token=stop)
    assert asking.past.state is None
    assert asking.past.keys == ()


def test_merged_updates_are_other_weights() -> None:
    from tests.plugins.causal_lm.test_causal_lm import make

    language_model = make(adaptation="lora")
    asking = Asking(language_model)
    prompt = tokens(0, 12)
    asking.language_model.resume(language_model.embed(torch.tensor([prompt])), prompt, asking.past, max_new_tokens=2)
    before = asking.past.weights
    language_model.merge_lora()
    language_model.resume(language_model.embed(torch.tensor([prompt])), prompt, asking.past, max_new_tokens=2)
    assert asking.past.weights != before
