"""Caption scores: agreement with pycocoevalcap's own evaluation where it is installed."""

from __future__ import annotations

import sys

import pytest

from lyrics.core.errors import MissingRequirementError
from lyrics.core.evaluation.metrics.captions import caption_scores, has_java, simple_tokens

CAPTIONS = ("A dog runs on the beach.", "two cats", "", "A man, riding a horse\r\nin the rain\u2028slowly")
REFERENCES = (
    ("a dog running on a beach", "A brown dog runs along the beach."),
    ("two cats sleep on a sofa", "a couple of cats"),
    ("a red car",),
    ("a man rides a horse", "a man riding a horse in the rain", "someone on a horse"),
)


def test_simple_tokens() -> None:
    assert simple_tokens("A dog's bone, isn't it? (No!)") == "a dog's bone isn't it no"
    assert simple_tokens("caf\u00e9 \u2014 12.5") == "caf\u00e9 12 5"
    assert simple_tokens(" ... ") == ""


def test_without_pycocoevalcap_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    for name in [name for name in sys.modules if name.startswith("pycocoevalcap.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingRequirementError, match=r"pip install 'lyrics-vl\[eval\]'"):
        caption_scores(CAPTIONS, REFERENCES, java=False)


@pytest.mark.parametrize(("captions", "references"), [((), ()), (("a",), ((),))])
def test_nothing_to_score_is_an_error(captions, references) -> None:
    with pytest.raises(ValueError, match="references for each"):
        caption_scores(captions, references, java=False)


def test_simple_tokens_say_so_in_every_name() -> None:
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed (extra: eval)")
    found = caption_scores(CAPTIONS, REFERENCES, java=False)
    assert set(found.scores) == {
        f"{name} (simple tokens)" for name in ("CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L")
    }
    assert "METEOR left out" in found.notes[0]
    assert len(found.cider) == len(CAPTIONS)
    assert found.cider[2] == 0.0
    assert found.scores["CIDEr (simple tokens)"] == pytest.approx(sum(found.cider) / 4)


def test_a_perfect_caption_has_the_highest_scores() -> None:
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed (extra: eval)")
    same = ("a dog runs on the beach", "two cats sleep on a sofa")
    found = caption_scores(same, [(text,) for text in same], java=False)
    # Ten for each picture, times 100: CIDEr-D's greatest value.
    assert found.scores["CIDEr (simple tokens)"] == pytest.approx(1000)
    assert found.scores["BLEU-4 (simple tokens)"] == pytest.approx(100)
    assert found.scores["ROUGE-L (simple tokens)"] == pytest.approx(100)


def test_agrees_with_pycocoevalcaps_own_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed (extra: eval)")
    if not has_java():
        pytest.skip("java is not on PATH")
    from pycocoevalcap.eval import COCOEvalCap

    class Annotations:
        def __init__(self, texts: dict[int, list[dict[str, str]]]) -> None:
            self.imgToAnns = texts

        def getImgIds(self) -> list[int]:
            return list(self.imgToAnns)

    one_line = [" ".join(caption.split()) for caption in CAPTIONS]
    true = Annotations({n: [{"caption": text} for text in row] for n, row in enumerate(REFERENCES)})
    said = Annotations({n: [{"caption": text}] for n, text in enumerate(one_line)})
    own = COCOEvalCap(true, said)
    own.params = {"image_id": list(range(len(CAPTIONS)))}
    from pycocoevalcap.spice.spice import Spice

    # It wants a download.
    monkeypatch.setattr(Spice, "__init__", lambda self: None)
    monkeypatch.setattr(Spice, "compute_score", lambda self, gts, res: (0.0, [{"All": {"f": 0.0}}] * len(res)))
    own.evaluate()
    found = caption_scores(CAPTIONS, REFERENCES, java=True)
    names = {"CIDEr": "CIDEr", "ROUGE_L": "ROUGE-L", "METEOR": "METEOR"} | {
        f"Bleu_{n}": f"BLEU-{n}" for n in range(1, 5)
    }
    for theirs, ours in names.items():
        assert found.scores[ours] == pytest.approx(100 * own.eval[theirs]), ours
    assert found.scores["CIDEr"] > 0
    assert found.notes == ()
