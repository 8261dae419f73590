"""One contract class per kind of component. Shapes: B pictures, N image tokens, M and K local tokens, D width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lyrics.core.component import KINDS
from lyrics.core.types import ImageBatch, Sample, Tag
from lyrics.testing.base import ComponentContract, ModuleContract
from lyrics.testing.tools import SIZES_PX, TOLERANCE, batch, close, objective_loss


class ImageEncoderContract(ModuleContract):
    """images [B,3,H,W] -> tokens [B,N,feature_dim]."""

    kind = "image-encoder"

    def _tokens(self, encoder: Any, count: int) -> Any:
        import torch

        with torch.no_grad():
            return encoder(batch(encoder.preprocessing, count).pixels_BCHW)

    def test_tokens_have_the_promised_shape(self) -> None:
        encoder = self.build()
        tokens = self._tokens(encoder, 2)
        assert tokens.ndim == 3, f"tokens are {tuple(tokens.shape)}, not [B,N,D]"
        assert (tokens.shape[0], tokens.shape[2]) == (2, encoder.feature_dim), f"tokens are {tuple(tokens.shape)}"
        assert tokens.is_floating_point()

    def test_no_images_give_no_tokens(self) -> None:
        encoder = self.build()
        assert self._tokens(encoder, 0).shape[0] == 0

    def test_batch_composition_does_not_matter(self) -> None:
        encoder = self.build()
        both = self._tokens(encoder, 2)
        close(both[:1], self._tokens(encoder, 1), "tokens of a picture alone and in a batch")

    def test_is_deterministic_in_evaluation_mode(self) -> None:
        encoder = self.build()
        close(self._tokens(encoder, 2), self._tokens(encoder, 2), "two passes", tolerance=0)


class TaggerContract(ModuleContract):
    """images -> per image a list of tags, best first."""

    kind = "tagger"

    def _tags(self, tagger: Any, batch: ImageBatch) -> list[list[Tag]]:
        import torch

        with torch.no_grad():
            return tagger(batch)  # type: ignore[no-any-return]

    def test_tags_are_records_best_first(self) -> None:
        tagger = self.build()
        found = self._tags(tagger, batch(tagger.preprocessing, 2))
        assert len(found) == 2, f"tags for {len(found)} of 2 pictures"
        for tags in found:
            assert all(isinstance(tag, Tag) and tag.name and 0 <= tag.score <= 1 for tag in tags), tags
            scores = [tag.score for tag in tags]
            assert scores == sorted(scores, reverse=True), "tags are not in descending score"

    def test_no_images_give_no_tags(self) -> None:
        tagger = self.build()
        assert self._tags(tagger, batch(tagger.preprocessing, 0)) == []

    def test_batch_composition_does_not_matter(self) -> None:
        tagger = self.build()
        both = self._tags(tagger, batch(tagger.preprocessing, 2))
        alone = [self._tags(tagger, batch(tagger.preprocessing, 1, first=index))[0] for index in range(2)]
        for together, single in zip(both, alone, strict=True):
            assert [tag.name for tag in together] == [tag.name for tag in single], "tags depend on the batch"
            assert all(abs(a.score - b.score) <= TOLERANCE for a, b in zip(together, single, strict=True))


class DetectorContract(ModuleContract):
    """images and phrases per image -> detections, and local tokens [B,M,feature_dim] with their mask."""

    kind = "detector"
    phrases: ClassVar[Sequence[str]] = ("red circle", "dog", "a man with a hat")

    def _detect(self, detector: Any, batch: ImageBatch, phrases: Sequence[Sequence[str]]) -> Any:
        import torch

        with torch.no_grad():
            return detector(batch, phrases)

    def test_output_keeps_the_contract(self) -> None:
        """Troubleshooting: tokens [B,M,feature_dim], a bool mask [B,M], detections in descending score, and phrases as they were asked."""
        from lyrics.core.refiner import check_detector

        detector = self.build()
        phrases = [list(self.phrases), list(self.phrases[:1])]
        found = self._detect(detector, batch(detector.preprocessing, 2), phrases)
        check_detector(found, phrases, detector.feature_dim)

    def test_boxes_are_normalised_and_scores_probabilities(self) -> None:
        from lyrics.core.geometry import Box

        detector = self.build()
        found = self._detect(detector, batch(detector.preprocessing, 2), [list(self.phrases)] * 2)
        for detection in (d for detections in found.detections for d in detections):
            assert isinstance(detection.box_norm, Box), f"a box is a {type(detection.box_norm).__name__}"
            assert 0 <= detection.score <= 1, detection.score

    def test_no_phrases_give_no_detections(self) -> None:
        detector = self.build()
        found = self._detect(detector, batch(detector.preprocessing, 2), [[], []])
        assert found.detections == ((), ()), "detections without a phrase"
        assert found.tokens_BMD.shape[0] == 2

    def test_no_images_give_no_detections(self) -> None:
        detector = self.build()
        found = self._detect(detector, batch(detector.preprocessing, 0), [])
        assert found.detections == ()
        assert (found.tokens_BMD.shape[0], found.tokens_BMD.shape[2]) == (0, detector.feature_dim)

    def test_batch_composition_does_not_matter(self) -> None:
        """Troubleshooting: padding must not reach the results. Mask it in attention and after convolutions."""
        detector = self.build()
        phrases = [list(self.phrases), list(self.phrases[1:])]
        both = self._detect(detector, batch(detector.preprocessing, 2), phrases)
        for index in range(2):
            alone = self._detect(detector, batch(detector.preprocessing, 1, first=index), phrases[index : index + 1])
            close(
                both.tokens_BMD[index][both.mask_BM[index]],
                alone.tokens_BMD[0][alone.mask_BM[0]],
                "tokens alone and in a batch",
            )
            together, single = both.detections[index], alone.detections[0]
            assert [d.phrase for d in together] == [d.phrase for d in single], "detections depend on the batch"
            for a, b in zip(together, single, strict=True):
                apart = max(abs(x - y) for x, y in zip(a.box_norm.as_tuple(), b.box_norm.as_tuple(), strict=True))
                assert max(apart, abs(a.score - b.score)) <= TOLERANCE, "a box or a score depends on the batch"


class SegmenterContract(ModuleContract):
    """images and boxes per image -> a mask and a token for each box, in order."""

    kind = "segmenter"

    def _segment(self, segmenter: Any, batch: ImageBatch, boxes: Sequence[Sequence[Any]]) -> Any:
        import torch

        from lyrics.core.refiner import check_segmenter

        with torch.no_grad():
            found = segmenter(batch, boxes)
        check_segmenter(found, boxes, segmenter.feature_dim)
        return found

    def _boxes(self) -> list[list[Any]]:
        from lyrics.core.geometry import Box

        return [[Box(0.1, 0.2, 0.6, 0.7), Box(0.0, 0.0, 1.0, 1.0)], [Box(0.5, 0.5, 0.9, 0.8)]]

    def test_masks_are_of_the_original_picture(self) -> None:
        """Troubleshooting: bring masks back through `images.frames[i].mask_from_canvas` before making `Mask`s of them."""
        segmenter = self.build()
        found = self._segment(segmenter, batch(segmenter.preprocessing, 2), self._boxes())
        for masks, size in zip(found.masks, SIZES_PX, strict=True):
            assert all((mask.width, mask.height) == size for mask in masks), f"masks are not {size} pixels"
        assert found.mask_BK.tolist() == [[True, True], [True, False]], "mask_BK does not say which rows exist"

    def test_no_boxes_give_no_masks(self) -> None:
        segmenter = self.build()
        found = self._segment(segmenter, batch(segmenter.preprocessing, 2), [[], []])
        assert found.masks == ((), ())

    def test_no_images_give_no_masks(self) -> None:
        segmenter = self.build()
        assert self._segment(segmenter, batch(segmenter.preprocessing, 0), []).masks == ()

    def test_batch_composition_does_not_matter(self) -> None:
        segmenter = self.build()
        boxes = self._boxes()
        both = self._segment(segmenter, batch(segmenter.preprocessing, 2), boxes)
        for index in range(2):
            alone = self._segment(segmenter, batch(segmenter.preprocessing, 1, first=index), boxes[index : index + 1])
            close(both.tokens_BKD[index][both.mask_BK[index]], alone.tokens_BKD[0], "tokens alone and in a batch")


class QueryTransformerContract(ModuleContract):
    """streams of queries and text + frozen features -> hidden states of the wanted rows."""

    kind = "query-transformer"
    context: ClassVar[Mapping[str, Any]] = {"image_dim": 12, "local_dims": {"detector": 10, "segmenter": 6}}

    def _features(self, num_objects: int = 3) -> Any:
        import torch

        from lyrics.core.streams import Features

        generator = torch.Generator().manual_seed(1)
        local = {
            source: (
                torch.randn(2, num_objects, dim, generator=generator),
                torch.ones(2, num_objects, dtype=torch.bool),
            )
            for source, dim in self.context["local_dims"].items()
        }
        return Features(torch.randn(2, 5, self.context["image_dim"], generator=generator), local)

    def _queries(
        self, transformer: Any, features: Any, rows: Sequence[int], text: Sequence[Sequence[int]] | None = None
    ) -> Any:
        """Outputs of the visual queries of the images ``rows``, with or without a text that they see."""
        import torch

        from lyrics.core.streams import Stream, Text, full

        index = torch.tensor(rows)
        words = {} if text is None else {"C": Text.from_lists(text)}
        segments = [segment for segment in transformer.segments if segment in "VG"] + list(words)
        stream = Stream(
            "queries", full("".join(segments)), sample_R=index, image_index_R=index, text=words, wanted={"V": "all"}
        )
        with torch.no_grad():
            return transformer([stream], features)("queries", "V")

    def test_queries_have_the_promised_width(self) -> None:
        transformer = self.build()
        found = self._queries(transformer, self._features(), [0, 1])
        assert found.ndim == 3, f"query outputs are {tuple(found.shape)}, not [rows, queries, width]"
        assert (found.shape[0], found.shape[2]) == (2, transformer.hidden_size)

    def test_batch_composition_does_not_matter(self) -> None:
        transformer = self.build()
        features = self._features()
        both = self._queries(transformer, features, [0, 1], [[5, 6, 7], [5]])
        close(both[1:], self._queries(transformer, features, [1], [[5]]), "query outputs alone and packed")

    def test_queries_read_the_image_that_is_indexed(self) -> None:
        transformer = self.build()
        features = self._features()
        both = self._queries(transformer, features, [0, 1])
        close(self._queries(transformer, features, [1, 0]), both.flip(0), "query outputs of swapped images")
        assert (both[0] - both[1]).abs().max() > 1e-6, "query outputs do not depend on the image"

    def test_queries_see_the_text_they_are_shown(self) -> None:
        transformer = self.build()
        features = self._features()
        one, other = self._queries(transformer, features, [0, 0], [[5, 6, 7], [5, 8, 7]])
        assert (one - other).abs().max() > 1e-6, "another text gives the same query outputs"

    def test_no_objects_are_normal(self) -> None:
        import torch

        transformer = self.build()
        assert torch.isfinite(self._queries(transformer, self._features(num_objects=0), [0, 1])).all()


class LanguageModelContract(ModuleContract):
    """Embeds, reads embeddings, and generates from embeddings."""

    kind = "language-model"

    def test_logits_have_the_promised_shape(self) -> None:
        import torch

        model = self.build()
        embeddings = model.embed(torch.tensor([[1, 5, 6], [1, 7, 8]]))
        assert embeddings.shape == (2, 3, model.hidden_size), f"embeddings are {tuple(embeddings.shape)}"
        logits = model(embeddings, torch.ones(2, 3, dtype=torch.long))
        assert logits.shape[:2] == (2, 3), f"logits are {tuple(logits.shape)}"
        assert logits.shape[2] >= len(model.tokenizer), "fewer logits than words"

    def test_generation_ignores_left_padding(self) -> None:
        """Troubleshooting: positions must be counted from the first token that is read, not from the padding."""
        import torch

        model = self.build()
        row = model.embed(torch.tensor([[1, 5, 6, 9]]))
        padded = torch.cat([torch.zeros_like(row[:, :2]), row], dim=1)
        alone = model.generate(row, torch.ones(1, 4, dtype=torch.long), max_new_tokens=6)
        mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
        assert torch.equal(alone, model.generate(padded, mask, max_new_tokens=6)), "padding changes the answer"
        assert alone.shape[1] <= 6, "more tokens than asked for"

    def test_tokens_are_reported_as_they_are_chosen(self) -> None:
        """Troubleshooting: call `on_token` with every new id, in order, and with nothing of the prompt."""
        import torch

        model = self.build()
        row, mask = model.embed(torch.tensor([[1, 5, 6, 9]])), torch.ones(1, 4, dtype=torch.long)
        told: list[int] = []
        new = model.generate(row, mask, max_new_tokens=5, on_token=told.append)
        assert told == new[0].tolist(), f"reported {told}, returned {new[0].tolist()}"

    def test_chat_template_exists(self) -> None:
        from lyrics.core.prompts import TEMPLATES

        model = self.build()
        assert model.chat_template in TEMPLATES, f"{model.chat_template!r} is none of {', '.join(TEMPLATES)}"

    def test_adaptation_says_what_is_trained(self) -> None:
        model = self.build()
        assert model.adaptation in ("lora", "frozen", "full"), model.adaptation
        trained = [parameter.requires_grad for parameter in model.parameters()]
        expected = {"frozen": not any(trained), "full": all(trained), "lora": any(trained) and not all(trained)}
        assert expected[model.adaptation], (
            f"adaptation {model.adaptation!r}: {sum(trained)} of {len(trained)} tensors are trained"
        )


class ObjectiveContract(ModuleContract):
    """Says which streams it needs, and turns their outputs into a (sum, count) per loss."""

    kind = "objective"
    context: ClassVar[Mapping[str, Any]] = {"query_dim": 16, "query_segments": ("V", "G", "S", "C")}

    def _loss(self, objects: Sequence[int], caption_lengths: Sequence[int]) -> tuple[Any, Any]:
        """(module, its loss) on one sample per entry: so many objects, so many caption tokens."""
        objective = self.build().train()
        return objective, objective_loss(objective, self.context["query_dim"], objects, caption_lengths)

    def test_loss_is_a_sum_with_its_count(self) -> None:
        """Troubleshooting: return `Loss(sum over the terms, number of terms)`, not a mean; means are taken over all ranks at once."""
        import torch

        objective, loss = self._loss([2, 1, 3], [4, 2, 6])
        assert isinstance(loss.count, int), f"count is {loss.count!r}"
        assert loss.count >= 0, f"count is {loss.count}"
        assert loss.sum.ndim == 0, f"sum has the shape {tuple(loss.sum.shape)}"
        assert torch.isfinite(loss.sum), f"sum is {loss.sum}"
        if loss.count and loss.sum.requires_grad:
            loss.sum.backward()
        for name, parameter in objective.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), (
                f"the gradient of {name} is not finite"
            )

    def test_one_sample_is_enough(self) -> None:
        import torch

        assert torch.isfinite(self._loss([2], [3])[1].sum)

    def test_nothing_to_see_or_to_say_is_normal(self) -> None:
        """Troubleshooting: a batch without objects, or with an empty caption, gives a finite loss; without terms it is exactly 0."""
        import torch

        for objects, lengths in (([0, 0], [3, 2]), ([1, 0], [0, 0]), ([0], [0])):
            loss = self._loss(objects, lengths)[1]
            assert torch.isfinite(loss.sum), f"objects {objects}, caption lengths {lengths}: sum is {loss.sum}"
            assert loss.count or loss.sum == 0, "a loss without terms must be 0"


class DatasetContract(ComponentContract):
    """A reader of one public format."""

    kind = "dataset"

    def test_has_a_length_and_samples(self) -> None:
        data = self.build()
        assert len(data) > 0, "the test options give no sample; point them at a small file of the true format"
        assert isinstance(data[0], Sample), f"a sample is a {type(data[0]).__name__}"
        assert data[0].source, "a sample must name its source"

    def test_samples_are_the_same_every_time(self) -> None:
        data, again = self.build(), self.build()
        for index in {0, len(data) // 2, len(data) - 1}:
            assert data[index] == data[index] == again[index], f"sample {index} changes"

    def test_pictures_are_rgb_and_the_same_every_time(self) -> None:
        """Troubleshooting: `picture(sample)` gives a PIL image, upright and RGB; `lyrics.core.images.decode_image` makes one of bytes."""
        from PIL import Image

        from lyrics.core.errors import ImageError

        data, again = self.build(), self.build()
        samples = [data[index] for index in range(min(len(data), 20))]
        samples = [sample for sample in samples if sample.image is not None]
        opened = 0
        for sample in samples:
            try:
                picture = data.picture(sample)
            except ImageError:  # a bad sample: replaced in training
                continue
            opened += 1
            assert isinstance(picture, Image.Image), f"a picture is a {type(picture).__name__}"
            assert picture.mode == "RGB", f"a picture's mode is {picture.mode}"
            assert picture.tobytes() == again.picture(sample).tobytes(), f"the picture of {sample.source} changes"
        assert opened or not samples, "no picture of the first samples can be opened"

    def test_survives_the_way_to_a_loader_worker(self) -> None:
        """Troubleshooting: data sets are pickled into workers; open files on first use and leave them out of the pickled state."""
        import copy

        data = self.build()
        expected = data[0]
        # A deep copy goes by the same protocol, and refuses what cannot be pickled.
        assert copy.deepcopy(data)[0] == expected, "a copy gives another sample"

    def test_index_out_of_range_is_an_index_error(self) -> None:
        data = self.build()
        try:
            data[len(data)]
        except IndexError:
            return
        raise AssertionError("an index beyond the end gave a sample")


class BenchmarkContract(ComponentContract):
    """Samples, prompts and the metric of one evaluation."""

    kind = "benchmark"

    def test_samples_have_prompts(self) -> None:
        benchmark = self.build()
        samples = list(benchmark.samples())
        assert samples, "the test options give no sample"
        assert all(isinstance(sample, Sample) for sample in samples)
        assert all(isinstance(benchmark.prompt(sample), str) and benchmark.prompt(sample) for sample in samples)

    def test_scores_are_numbers(self) -> None:
        benchmark = self.build()
        samples = list(benchmark.samples())
        scores = benchmark.score(["" for _ in samples], samples)
        assert scores, "no metric"
        assert all(isinstance(value, int | float) for value in scores.values()), scores


CONTRACTS: Mapping[str, type[ComponentContract]] = {
    contract.kind: contract
    for contract in (
        ImageEncoderContract,
        TaggerContract,
        DetectorContract,
        SegmenterContract,
        QueryTransformerContract,
        LanguageModelContract,
        ObjectiveContract,
        DatasetContract,
        BenchmarkContract,
    )
}
assert tuple(CONTRACTS) == KINDS, "one contract per kind, in the order of the kinds"
