"""The runner: predictions on disk, resuming, sharing, scoring again, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lyrics.core.errors import ImageError, LyricsError
from lyrics.core.evaluation.benchmark import Prediction
from lyrics.core.evaluation.runner import evaluate
from lyrics.core.geometry import Box
from lyrics.core.pictures.images import picture_name
from tests.core.evaluation.toys import COLORS, Colors, Model, Plain
from tests.fresh import fresh

NAME = "colors-test"


def run(out: Path, model: Any = None, benchmark: Any = None, **more: Any) -> Any:
    return evaluate(model, {NAME: benchmark or Colors()}, out, batch=more.pop("batch", 2), **more)


def rows(out: Path, file: str = "predictions.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / NAME / file).read_text(encoding="utf-8").splitlines()]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_pictures_carry_the_names_by_which_stored_objects_are_found(tmp_path: Path) -> None:
    model = Model()
    asked: list[str] = []
    generate = model.generate

    def noting(pictures: Any, *rest: Any, **more: Any) -> Any:
        asked.extend(picture_name(picture) for picture in pictures)
        return generate(pictures, *rest, **more)

    model.generate = noting  # type: ignore[method-assign]
    run(tmp_path, model)
    assert asked == [f"{color}.png" for color in COLORS]


def test_what_is_written(tmp_path: Path) -> None:
    model = Model(wrong=("blue",))
    (result,) = run(tmp_path, model, about={NAME: {"model": "toy", "split": "test"}})
    assert result.scores == {"accuracy": pytest.approx(100 * 6 / 7)}
    assert result.notes == ("A note.",)
    assert model.tokens == {7}
    assert [len(batch) for batch in model.batches] == [2, 2, 2, 1]
    lines = rows(tmp_path)
    assert [line["id"] for line in lines] == [f"{n}:{100 + n}" for n in range(7)]
    assert lines[2] == {
        "id": "2:102",
        "prompt": "What color is it?",
        "text": "wrong <box>",
        "answer": "wrong",
        "objects": [
            {
                "tag": "thing",
                "box_norm": [0.1, 0.2, 0.5, 0.9],
                "box_px": [4.0, 4.0, 20.0, 18.0],
                "supported": True,
                "score": 0.75,
                "iou": 1.0,
                "evidence": 0.75,
            }
        ],
    }
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores == {
        NAME: {
            "model": "toy",
            "split": "test",
            "samples": 7,
            "limit": None,
            "scores": {"accuracy": 85.7143},
            "notes": ["A note."],
        }
    }
    table = (tmp_path / "table.md").read_text()
    assert f"| {NAME} | 7 | accuracy | 85.71 |" in table
    assert f"- {NAME}: A note." in table
    assert json.loads((tmp_path / NAME / "run.json").read_text()) == {"model": "toy", "split": "test"}


def test_a_second_run_answers_nothing_and_needs_no_model(tmp_path: Path) -> None:
    run(tmp_path, Model())
    before = everything(tmp_path)

    def build() -> Model:
        raise AssertionError("a model was built")

    assert run(tmp_path, build) == run(tmp_path, None)
    assert everything(tmp_path) == before


def test_a_model_may_be_given_as_a_function(tmp_path: Path) -> None:
    (result,) = run(tmp_path, lambda: Model())
    assert result.scores == {"accuracy": 100.0}


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, cut: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Model(stop_after=4))
    file = tmp_path / NAME / "predictions.jsonl"
    assert len(rows(tmp_path)) == 4
    if cut:  # the last line did not reach the disk as a whole
        file.write_bytes(file.read_bytes()[:-cut])
    again = Model()
    (result,) = run(tmp_path, again)
    assert again.answered == (4 if cut else 3)
    assert result.scores == {"accuracy": 100.0}
    assert sorted(line["id"] for line in rows(tmp_path)) == [f"{n}:{100 + n}" for n in range(7)]


def test_a_line_cut_off_in_the_middle_of_a_letter(tmp_path: Path) -> None:
    run(tmp_path, Model())
    file = tmp_path / NAME / "predictions.jsonl"
    file.write_bytes(file.read_bytes() + '{"id": "9:\u00e9'.encode()[:-1])
    (result,) = run(tmp_path, None)
    assert result.samples == 7


def test_several_processes_share_and_one_merges(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    run(whole, Model())
    shared = tmp_path / "shared"
    models = [Model(), Model(), Model()]
    for index in (2, 0, 1):
        assert run(shared, models[index], shard=(index, 3)) == []
        assert not (shared / NAME / "scores.json").exists()
    assert [model.answered for model in models] == [3, 2, 2]
    assert [line["id"] for line in rows(shared, "predictions.1-of-3.jsonl")] == ["1:101", "4:104"]
    (result,) = run(shared, None)
    assert result.scores == {"accuracy": 100.0}
    assert everything(shared) == everything(whole)


def test_a_process_of_several_resumes_and_takes_over_nothing(tmp_path: Path) -> None:
    run(tmp_path, Model(), shard=(0, 2))
    again = Model()
    run(tmp_path, again, shard=(0, 2))
    assert again.answered == 0
    with pytest.raises(LyricsError, match=r"3 of 7 predictions are missing, the first is '1:101'"):
        run(tmp_path, None)
    rest = Model()
    run(tmp_path, rest)
    assert rest.answered == 3
    assert not list((tmp_path / NAME).glob("predictions.*-of-*"))


def test_merging_that_was_interrupted_is_finished(tmp_path: Path) -> None:
    for index in range(2):
        run(tmp_path, Model(), shard=(index, 2))
    kept = (tmp_path / NAME / "predictions.1-of-2.jsonl").read_bytes()
    run(tmp_path, None)
    # As if the process had been killed before it removed this one.
    (tmp_path / NAME / "predictions.1-of-2.jsonl").write_bytes(kept)
    (result,) = run(tmp_path, None)
    assert result.samples == 7
    assert len(rows(tmp_path)) == 7
    assert not (tmp_path / NAME / "predictions.1-of-2.jsonl").exists()


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_does_not_exist(tmp_path: Path, shard: tuple[int, int]) -> None:
    with pytest.raises(LyricsError, match="counted from 0"):
        run(tmp_path, Model(), shard=shard)


def test_limit(tmp_path: Path) -> None:
    (result,) = run(tmp_path, Model(wrong=("red",)), limit=3)
    assert (result.samples, result.limit) == (3, 3)
    assert result.scores == {"accuracy": pytest.approx(200 / 3)}
    assert "first 3 samples only" in result.notes[-1]
    more = Model()
    (result,) = run(tmp_path, more)
    assert more.answered == 4
    assert (result.samples, result.notes) == (7, ("A note.",))
    # A smaller limit afterwards scores fewer, and loses none.
    (result,) = run(tmp_path, None, limit=2)
    assert result.scores == {"accuracy": 50.0}
    assert len(rows(tmp_path)) == 7


def test_a_limit_beyond_the_end_is_the_whole_benchmark(tmp_path: Path) -> None:
    (result,) = run(tmp_path, Model(), limit=100)
    assert (result.samples, result.notes) == (7, ("A note.",))


# --- what is refused, and that nothing is written then ---


def spoil(out: Path, number: int, **changes: Any) -> None:
    lines = rows(out)
    lines[number] |= changes
    (out / NAME / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (3, {"id": "1:101"}, r"line 4: '1:101' is there already: .*line 2"),
        (3, {"id": "3:7"}, r"line 4: the benchmark has no sample '3:7'"),
        (3, {"id": "99:7"}, r"line 4: the benchmark has no sample '99:7'"),
        (3, {"id": "x"}, r"line 4: is no prediction"),
        (3, {"id": 4}, r"line 4: is no prediction"),
        (2, {"prompt": "And now?"}, r"line 3: answers 'And now\?', but the benchmark asks 'What color is it\?'"),
        (0, {"objects": [{"tag": "a"}]}, r"line 1: is no prediction: KeyError"),
        (
            0,
            {"objects": [{"tag": "a", "box_norm": [0, 0, 2, 1], "supported": True, "score": None, "iou": 0}]},
            r"line 1: .*x2",
        ),
        (0, {"text": None}, r"line 1: is no prediction"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, number: int, changes: dict[str, Any], message: str) -> None:
    run(tmp_path, Model())
    spoil(tmp_path, number, **changes)
    before = everything(tmp_path)
    model = Model()
    with pytest.raises(LyricsError, match=message):
        run(tmp_path, model)
    assert model.answered == 0
    assert everything(tmp_path) == before


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    run(tmp_path, Model())
    file = tmp_path / NAME / "predictions.jsonl"
    file.write_text(file.read_text().replace('{"id": "5:105"', '{"id": 5:105"'))
    with pytest.raises(LyricsError, match=r"predictions\.jsonl, line 6: is no prediction: is not JSON"):
        run(tmp_path, Model())


def test_the_same_id_in_two_processes_files(tmp_path: Path) -> None:
    run(tmp_path, Model(), shard=(0, 2))
    line = (tmp_path / NAME / "predictions.0-of-2.jsonl").read_text().splitlines()[0]
    (tmp_path / NAME / "predictions.1-of-2.jsonl").write_text(line + "\n")
    with pytest.raises(LyricsError, match=r"1-of-2\.jsonl, line 1: '0:100' is there already: .*0-of-2\.jsonl, line 1"):
        run(tmp_path, None)


def test_answers_of_another_model_are_not_mixed_in(tmp_path: Path) -> None:
    run(tmp_path, Model(), about={NAME: {"model": "toy"}}, limit=2)
    with pytest.raises(LyricsError, match="of model 'toy', not 'other'"):
        run(tmp_path, Model(), about={NAME: {"model": "other"}})
    assert len(rows(tmp_path)) == 2


def test_missing_predictions_are_counted_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(LyricsError, match=r"7 of 7 predictions are missing, the first is '0:100'.*--rescore"):
        run(tmp_path / "new", None)
    assert not (tmp_path / "new").exists()


def test_one_of_two_benchmarks_is_incomplete(tmp_path: Path) -> None:
    run(tmp_path, Model())
    before = everything(tmp_path)
    with pytest.raises(LyricsError, match="other"):
        evaluate(None, {NAME: Colors(), "other": Colors(2)}, tmp_path)
    assert everything(tmp_path) == before


def test_a_broken_picture_stops_the_run_and_keeps_what_was_answered(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gray\.png: is corrupt"):
        run(tmp_path, Model(), Colors(broken=COLORS.index("gray")))
    assert [line["id"] for line in rows(tmp_path)] == ["0:100", "1:101"]
    assert not (tmp_path / "scores.json").exists()


def test_a_benchmark_without_samples(tmp_path: Path) -> None:
    with pytest.raises(LyricsError, match=f"{NAME}: the benchmark has no samples"):
        run(tmp_path, Model(), Colors(count=0))


def test_a_model_that_answers_too_little(tmp_path: Path) -> None:
    class Silent:
        def generate(self, pictures: Any, instructions: Any, *, max_new_tokens: int) -> list[Any]:
            return []

    with pytest.raises(LyricsError, match="0 answers to 2 questions"):
        run(tmp_path, Silent())
    assert not (tmp_path / NAME).exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LyricsError, match=rf"file/out/{NAME}/run\.json: cannot be written: Not a directory"):
        run(tmp_path / "file" / "out", Model())


# --- a stranger's benchmark ---


def test_the_bare_contract_is_enough(tmp_path: Path) -> None:
    class Echo:
        shown: ClassVar[list[Any]] = []

        def generate(self, pictures: Any, instructions: Any, *, max_new_tokens: int) -> list[Any]:
            from lyrics.core.answers import Answer

            self.shown += pictures
            assert max_new_tokens == 64
            return [Answer(text, plain_text=text) for text in instructions]

    (result,) = evaluate(Echo(), {"plain": Plain()}, tmp_path)
    assert result.scores == {"length": 12.0}
    assert Echo.shown == ["a.jpg", "b.jpg"]
    assert not (tmp_path / "plain" / "worst.html").exists()


def test_boxes_in_a_text_are_read_for_score() -> None:
    read = Prediction.of_text("It is <br><T>red cup</T><Bbox>(0,0),(999,500)</Bbox></br> there.")
    assert read.answer == "It is red cup there."
    assert [(one.tag, one.box_norm) for one in read.objects] == [("red cup", Box(0.0, 0.0, 1.0, 500 / 999))]


# --- the gallery ---


def test_the_gallery_shows_the_worst_and_runs_nothing(tmp_path: Path) -> None:
    class Hostile(Model):
        def generate(self, pictures: Any, instructions: Any, *, max_new_tokens: int) -> Any:
            from tests.core.evaluation.toys import box_answer

            return [
                box_answer("<script>alert(1)</script><img src=http://x/y>", Box(0.1, 0.2, 0.5, 0.9), False)
                if self.names[picture.getpixel((0, 0))] == "pink"
                else answer
                for picture, answer in zip(
                    pictures, super().generate(pictures, instructions, max_new_tokens=max_new_tokens), strict=True
                )
            ]

    run(tmp_path, Hostile(wrong=("green",)))
    page = (tmp_path / NAME / "worst.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count('<figure class="case">') == 7
    assert page.count('src="data:image/jpeg;base64,') == page.count("<img ") == 7
    assert "default-src 'none'" in page
    order = [page.index(f"<dd>{n}:{100 + n}</dd>") for n in (1, 6, 0, 2, 3, 4, 5)]
    assert order == sorted(order), "the worst are not first"


def test_boxes_are_drawn_in_the_gallery(tmp_path: Path) -> None:
    import base64
    import io
    import re

    from PIL import Image

    run(tmp_path, Model(), Colors(count=1))
    page = (tmp_path / NAME / "worst.html").read_text(encoding="utf-8")
    (data,) = re.findall(r"base64,([^\"]+)", page)
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.size == (320, 160)
    pixels = {
        name: picture.getpixel(at)
        for name, at in {"side": (32, 100), "inside": (100, 100), "beside": (300, 30)}.items()
    }
    assert sum(pixels["side"]) < 500
    assert pixels["side"] != pixels["inside"]
    for name in ("inside", "beside"):
        red, green, blue = pixels[name]
        assert red > 240, f"{name} the box the picture stays red"
        assert max(green, blue) < 20


def test_scoring_again_needs_no_pictures(tmp_path: Path) -> None:
    run(tmp_path, Model())
    (result,) = run(tmp_path, None, Colors(broken=0))
    assert result.scores == {"accuracy": 100.0}
    assert "red.png: is corrupt." in (tmp_path / NAME / "worst.html").read_text()


def test_scores_of_earlier_benchmarks_stay_in_the_report(tmp_path: Path) -> None:
    run(tmp_path, Model())
    evaluate(Model(), {"another": Colors(2)}, tmp_path)
    assert list(json.loads((tmp_path / "scores.json").read_text())) == ["another", NAME]
    (tmp_path / "another" / "scores.json").write_text("{")
    with pytest.raises(LyricsError, match=r"another/scores\.json: is not JSON.*Remove it and score again"):
        run(tmp_path, None)


# --- imports ---


def test_evaluation_imports_no_torch() -> None:
    modules = [
        "lyrics.core.evaluation.runner",
        "lyrics.core.evaluation.judges",
        "lyrics.core.evaluation.build",
        "lyrics.core.evaluation.prompts",
        "lyrics.plugins.benchmarks.scenes",
        "lyrics.plugins.benchmarks.questions",
    ]
    done = fresh("".join(f"import {name}\n" for name in modules))
    assert done.returncode == 0, done.stderr


def test_two_processes_at_the_same_time(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.core.evaluation.toys import Colors, Model\n"
        "from lyrics.core.evaluation.runner import evaluate\n"
        f"evaluate(Model(), {{{NAME!r}: Colors()}}, Path(sys.argv[1]), batch=1, shard=(int(sys.argv[2]), 2))\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(index)]) for index in range(2)]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    (result,) = run(tmp_path, None)
    assert result.scores == {"accuracy": 100.0}
