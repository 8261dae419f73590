"""What a vocabulary keeps: the words that a plugin provides for the built-in tokenizers."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from lyrics.core.json_reading import parse_json
from lyrics.core.registry.component import Vocabulary
from lyrics.core.registry.plugin_process import python
from lyrics.core.registry.registry import PluginSource, Registry, default_registry
from lyrics.testing.base import Contract, manifest_is_light

#: Text that no list of words has in mind; some of it looks like special tokens.
_AWKWARD = ("", " two  spaces ", "don't, stop.", "[MASK] <s>", "\u00e9\U0001f600\n\t\x00", "0 12 1000", "a" * 500)
_SPECIAL = ("<pad>", "<s>", "</s>")


class VocabularyContract(Contract):
    """What a vocabulary keeps.

    Attributes to set: ``vocabulary`` (its name, or ``distribution/name``); ``registry``, where it is not installed.
    """

    vocabulary: ClassVar[str] = ""
    registry: ClassVar[Registry | None] = None

    # --- what checks stand on ---

    @property
    def lists(self) -> tuple[tuple[str, ...], ...]:
        """Its words. Raises ``UnknownNameError`` where there is no such vocabulary, ``PluginError`` for bad words."""
        return self._registry.vocabulary(self.vocabulary)

    @property
    def record(self) -> tuple[Vocabulary, PluginSource]:
        assert self.lists
        return next(
            (record, source)
            for record, source in self._registry.vocabularies
            if self.vocabulary in (record.name, f"{source.distribution}/{record.name}")
        )

    @property
    def _registry(self) -> Registry:
        return self.registry or default_registry()

    # --- checks ---

    def test_manifest_imports_nothing_heavy(self) -> None:
        """Troubleshooting: the module that the entry point names holds records only.

        Words stand in the module that `words` names.
        """
        record, source = self.record
        manifest_is_light(source.module or record.words.partition(":")[0])

    def test_words_are_the_same_in_every_process(self) -> None:
        """Troubleshooting: ids follow from the order; do not take it from a set, or from what a folder holds."""
        code = f"import json, pkgutil; print(json.dumps(pkgutil.resolve_name({self.record[0].words!r})()))"
        here = [list(words) for words in self.lists]
        for seed in ("1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": seed}
            done = subprocess.run(python(code), capture_output=True, text=True, timeout=120, env=environment)
            assert done.returncode == 0, done.stderr.strip().splitlines()[-1]
            assert parse_json(done.stdout.splitlines()[-1]) == here, "another process got other words, or another order"

    def test_tokenizer_knows_the_words(self) -> None:
        """Each is one token with and without a space before it; any text comes back; what is saved is the same."""
        from lyrics.core.language.tokenizers import builtin_tokenizer
        from lyrics.core.weights.transformers_files import load_tokenizer

        tokenizer = builtin_tokenizer(self.vocabulary, _SPECIAL, self._registry)
        words = [word for one in self.lists for word in one]
        for text in (spelled for word in words for spelled in (word, f" {word}")):
            count = len(_ids(text, tokenizer))
            assert count == 1, f"{text!r} is spelled in {count} tokens"
        for text in (*_AWKWARD, " ".join(words[:200]), "".join(words[:200])):
            found = _ids(text, tokenizer)
            assert tokenizer.decode(found) == text, f"{text!r} did not come back"
            assert all(one >= len(_SPECIAL) for one in found), f"{text!r} became a special token"
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            assert load_tokenizer(Path(folder)).get_vocab() == tokenizer.get_vocab()


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)
