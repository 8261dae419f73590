"""One contract class per kind of component. Shapes: B images, N image tokens, M and K local tokens, D width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lyrics.core.registry.component import KINDS
from lyrics.core.types import ImageBatch, Sample, Tag
from lyrics.testing.base import ComponentContract, ModuleContract
from lyrics.testing.small import (
    SmallModel,
    memory_is_counted,
    pretraining_losses,
    reached,
    saves_loads_and_answers,
    trains_in_stage_2,
    what_it_computes,
)
from lyrics.testing.tools import SIZES_PX, TOLERANCE, batch, close, objective_loss, pretrain_batch


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
        close(both[:1], self._tokens(encoder, 1), "tokens of an image alone and in a batch")

    def test_every_parameter_reaches_the_tokens(self) -> None:
        """Troubleshooting: leave out what tokens do not depend on (pooling heads, skipped layers): an encoder may be
        trained, and then each parameter must have a gradient.
        """
        import torch

        encoder = self.build()
        tokens = encoder(batch(encoder.preprocessing, 2).pixels_BCHW)
        (tokens * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
        unread = [name for name, one in encoder.named_parameters() if one.requires_grad and one.grad is None]
        assert not unread, f"the tokens do not depend on {', '.join(unread[:3])}"

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
        assert len(found) == 2, f"tags for {len(found)} of 2 images"
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
        """Troubleshooting: tokens [B,M,feature_dim], a bool mask [B,M], detections in descending score, and phrases as
        they were asked.
        """
        from lyrics.core.refining.refiner import check_detector

        detector = self.build()
        phrases = [list(self.phrases), list(self.phrases[:1])]
        found = self._detect(detector, batch(detector.preprocessing, 2), phrases)
        check_detector(found, phrases, detector.feature_dim)

    def test_boxes_are_normalized_and_scores_probabilities(self) -> None:
        from lyrics.core.geometry import Box

        detector = self.build()
        found = self._detect(detector, batch(detector.preprocessing, 2), [list(self.phrases)] * 2)
        for detection in (d for detections in found.detections for d in detections):
            assert isinstance(detection.box_norm, Box), f"a box is a {type(detection.box_norm).__name__}"
            assert 0 <= detection.score <= 1, detection.score

    def test_masks_are_of_the_original_picture(self) -> None:
        """Troubleshooting: one mask for each detection, in the pixels of the original image. Checked where the
        detector gives masks.
        """
        detector = self.build()
        found = self._detect(detector, batch(detector.preprocessing, 2), [list(self.phrases)] * 2)
        if found.masks is None:
            return
        for masks, detections, size in zip(found.masks, found.detections, SIZES_PX, strict=True):
            assert len(masks) == len(detections), f"{len(masks)} masks for {len(detections)} detections"
            assert all((mask.width, mask.height) == size for mask in masks), f"masks are not {size} pixels"

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

        from lyrics.core.refining.refiner import check_segmenter

        with torch.no_grad():
            found = segmenter(batch, boxes)
        check_segmenter(found, boxes, segmenter.feature_dim)
        return found

    def _boxes(self) -> list[list[Any]]:
        from lyrics.core.geometry import Box

        return [[Box(0.1, 0.2, 0.6, 0.7), Box(0.0, 0.0, 1.0, 1.0)], [Box(0.5, 0.5, 0.9, 0.8)]]

    def test_masks_are_of_the_original_picture(self) -> None:
        """Troubleshooting: bring masks back through `images.frames[i].mask_from_canvas` before making
        `Mask`s of them.
        """
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
    """streams of queries and text + frozen features -> hidden states of the wanted rows; trained in both stages.

    Text is only handed to a query transformer that has text among its segments. In stage 1 it is trained with those of
    this library's objectives that its segments allow.
    """

    kind = "query-transformer"
    context: ClassVar[Mapping[str, Any]] = {
        "image_dim": 12,
        "image_tokens": 5,
        "local_dims": {"detector": 10, "segmenter": 6},
    }

    def _features(self, num_objects: int = 3) -> Any:
        import torch

        from lyrics.core.stage1.streams import Features

        generator = torch.Generator().manual_seed(1)
        local = {
            source: (
                torch.randn(2, num_objects, dim, generator=generator),
                torch.ones(2, num_objects, dtype=torch.bool),
            )
            for source, dim in self.context["local_dims"].items()
        }
        return Features(
            torch.randn(2, self.context["image_tokens"], self.context["image_dim"], generator=generator), local
        )

    def _stream(self, transformer: Any, rows: Sequence[int], text: Sequence[Sequence[int]] | None) -> Any:
        """The queries of the images ``rows``, with or without a text that they see."""
        import torch

        from lyrics.core.stage1.streams import Stream, Text, full

        index = torch.tensor(rows)
        words = {} if text is None or "C" not in transformer.segments else {"C": Text.from_lists(text)}
        segments = [segment for segment in transformer.segments if segment in "VG"] + list(words)
        return Stream(
            "queries", full("".join(segments)), sample_R=index, image_index_R=index, text=words, wanted={"V": "all"}
        )

    def _queries(
        self, transformer: Any, features: Any, rows: Sequence[int], text: Sequence[Sequence[int]] | None = None
    ) -> Any:
        """Outputs of the visual queries of such a stream."""
        import torch

        with torch.no_grad():
            return transformer([self._stream(transformer, rows, text)], features)("queries", "V")

    def _caption(self, transformer: Any, text: Sequence[Sequence[int]], images: Sequence[int], wanted: Any) -> Any:
        """Outputs of captions, read from left to right, that see the queries of the images."""
        import torch

        from lyrics.core.stage1.streams import Stream, Text, full

        index = torch.tensor(images)
        queries = "".join(segment for segment in transformer.segments if segment in "VG")
        streams = [
            Stream("queries", full(queries), sample_R=index, image_index_R=index),
            Stream(
                "caption",
                {("C", "C"): "causal"},
                sample_R=index,
                text={"C": Text.from_lists(text)},
                prefix="queries",
                wanted={"C": wanted},
            ),
        ]
        with torch.no_grad():
            return transformer(streams, self._features())("caption", "C")

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
        if "C" not in transformer.segments:
            return
        features = self._features()
        one, other = self._queries(transformer, features, [0, 0], [[5, 6, 7], [5, 8, 7]])
        assert (one - other).abs().max() > 1e-6, "another text gives the same query outputs"

    def test_no_objects_are_normal(self) -> None:
        import torch

        transformer = self.build()
        assert torch.isfinite(self._queries(transformer, self._features(num_objects=0), [0, 1])).all()

    def test_projected_features_stand_for_the_features(self) -> None:
        """Troubleshooting: what `project` returns, alone or joined by `followed_by`, gives the same outputs as the
        features themselves.
        """
        from lyrics.core.stage1.streams import Features

        transformer = self.build()
        features = self._features()
        both = self._queries(transformer, features, [0, 1])
        close(self._queries(transformer, transformer.project(features), [0, 1]), both, "outputs of projected features")
        parts = []
        for image, objects in ((0, 3), (1, 2)):
            local = {
                name: (tokens[image : image + 1, :objects], mask[image : image + 1, :objects])
                for name, (tokens, mask) in features.local.items()
            }
            parts.append(Features(features.image_tokens_BND[image : image + 1], local))
        joined = transformer.project(parts[0]).followed_by(transformer.project(parts[1]))
        alone = [self._queries(transformer, part, [0]) for part in parts]
        found = self._queries(transformer, joined, [0, 1])
        for row, one in enumerate(alone):
            close(found[row : row + 1], one, "outputs of joined features and of each alone")

    def test_captions_are_read_from_left_to_right(self) -> None:
        """Troubleshooting: `causal` lets a token see itself and those before it; a prefix is seen by every token."""
        transformer = self.build()
        if "C" not in transformer.segments:
            return
        one, other, elsewhere = (
            self._caption(transformer, [[5, 6, last]], [image], "all") for last, image in ((7, 0), (8, 0), (7, 1))
        )
        close(one[:2], other[:2], "outputs before the token that differs")
        assert (one[2] - other[2]).abs().max() > 1e-6, "the last token does not see itself"
        assert (one - elsewhere).abs().max() > 1e-6, "captions do not see the queries that are their prefix"

    def test_wanted_rows_are_those_asked_for(self) -> None:
        """Troubleshooting: see `Wanted` in `lyrics.core.stage1.streams`.

        Rows come in the order of the stream, without padding.
        """
        import torch

        transformer = self.build()
        if "C" not in transformer.segments:
            return
        text = [[5, 6, 7], [8, 9]]
        every = self._caption(transformer, text, [0, 1], "all")
        assert every.shape == (5, transformer.hidden_size), f"all of 5 tokens are {tuple(every.shape)}"
        mask = torch.tensor([[False, True, True], [True, False, False]])
        close(self._caption(transformer, text, [0, 1], mask), every[[1, 2, 3]], "rows of a mask")
        close(self._caption(transformer, text, [0, 1], "first"), every[[0, 3]], "first rows")
        logits = transformer.token_logits(every)
        assert logits.ndim == 2, f"logits are {tuple(logits.shape)}, not [n, V]"
        assert len(logits) == 5, f"logits of 5 tokens are {tuple(logits.shape)}"
        assert logits.shape[1] >= len(transformer.tokenizer), "fewer logits than words"

    def test_a_pass_laid_out_before_is_the_pass(self) -> None:
        """Troubleshooting: `run_planned` gives what a call gives, and None for features of other numbers. Checked where
        the part has it (`PlansAhead`).
        """
        import copy

        from lyrics.core.contracts import PlansAhead

        transformer = self.build()
        plans: PlansAhead | None = transformer if isinstance(transformer, PlansAhead) else None
        if plans is None:
            return
        features, stream = self._features(), self._stream(transformer, [0, 1], None)
        tokens = {name: int(own.shape[1]) for name, (own, _) in features.local.items()}
        planner = copy.deepcopy(plans.planner(int(features.image_tokens_BND.shape[1])))
        planned = copy.deepcopy(planner([stream], features.num_images, tokens))
        projected = transformer.project(features)
        found, wanted = plans.run_planned(planned, projected), transformer([stream], projected)
        assert found is not None, "it was laid out for these features"
        for segment in stream.wanted:
            close(found(stream.name, segment), wanted(stream.name, segment), f"outputs of {segment}, laid out before")
        other = planner([stream], features.num_images + 1, tokens)
        assert plans.run_planned(other, projected) is None, "it was laid out for other features"

    def test_trains_in_stage_1(self) -> None:
        """Troubleshooting: a step with all objectives that the segments allow.

        Its gradient must reach every parameter that it trains.
        """
        from lyrics.core.stage1.reduction import total_loss

        model = SmallModel.around(self.part).build()
        if not model.objectives:
            return
        trained = model.trainable_parameters("pretrain")
        losses = pretraining_losses(model)
        assert all(loss.count for loss in losses.values()), {name: loss.count for name, loss in losses.items()}
        total_loss(losses)[0].backward()
        reached(trained)

    def test_two_ranks_are_one(self) -> None:
        """Troubleshooting: half the batch on each of two ranks gives the losses and gradients of all of it on one.

        Hard negatives of the other rank are images that `followed_by` puts after one's own.
        """
        from lyrics.testing.ranks import one_rank, two_ranks

        small = SmallModel.around(self.part)
        if not small.spec.objectives:
            return
        means, gradients = one_rank(small)
        for found_means, found_gradients in two_ranks(small):
            for name, mean in means.items():
                assert abs(found_means[name] - mean) <= TOLERANCE, (
                    f"{name}: {found_means[name]} on two ranks, {mean} on one"
                )
            for name, gradient in gradients.items():
                worst = abs(found_gradients[name] - gradient).max(initial=0)
                assert worst <= TOLERANCE * max(1, abs(gradient).max(initial=0)), (
                    f"the gradient of {name} differs by {worst}"
                )

    def test_trains_in_stage_2(self) -> None:
        """Troubleshooting: the gradient must reach all parameters but those that `stage1_parameters` names."""
        trains_in_stage_2(SmallModel.around(self.part))

    def test_saves_loads_and_answers(self) -> None:
        """Troubleshooting: whatever the results depend on belongs into parameters, persistent buffers, options or the
        tokenizer.
        """
        saves_loads_and_answers(SmallModel.around(self.part))

    def test_memory_is_counted(self) -> None:
        """Troubleshooting: `lyrics check` runs the part on the meta device, where tensors have no values: no `.item()`,
        no `if tensor`.
        """
        memory_is_counted(SmallModel.around(self.part))


class LanguageModelContract(ModuleContract):
    """Embeds, reads embeddings, and generates from embeddings; trained in stage 2."""

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

    def test_tokens_are_as_probable_as_it_says(self) -> None:
        """Troubleshooting: `generate_scored` gives the ids of `generate`, each with the log-softmax of the logits
        before it, and NaN behind the token that ends an answer. Checked where the part has it.
        """
        import torch

        from lyrics.core.contracts import ScoresItsTokens

        model: Any = self.build()
        if not isinstance(model, ScoresItsTokens):
            return
        model = self.build()
        row, mask = model.embed(torch.tensor([[1, 5, 6, 9]])), torch.ones(1, 4, dtype=torch.long)
        ids, log_probs = model.generate_scored(row, mask, max_new_tokens=6)
        assert torch.equal(ids, model.generate(row, mask, max_new_tokens=6)), "other tokens than those of generate"
        assert log_probs.shape == ids.shape, f"{tuple(log_probs.shape)} log-probabilities of {tuple(ids.shape)} tokens"
        with torch.no_grad():
            whole = torch.cat([row, model.embed(ids)], dim=1)
            logits = model(whole, torch.ones(whole.shape[:2], dtype=torch.long))[:, 3:-1].float()
        expected = logits.log_softmax(dim=-1).gather(2, ids[..., None])[..., 0]
        said = ~log_probs.isnan()
        assert said[:, 0].all(), "the first token has no log-probability"
        assert torch.allclose(log_probs[said], expected[said], atol=1e-3), (
            "not the probabilities of the model's own logits"
        )

    def test_generation_follows_the_options_that_it_takes(self) -> None:
        """Troubleshooting: with `generation_config`, samples are a function of torch's seed, and an answer has at most
        `max_new_tokens`. Checked where `generate` has that parameter.
        """
        import inspect

        import torch
        from transformers import GenerationConfig

        model = self.build()
        if "generation_config" not in inspect.signature(model.generate).parameters:
            return
        row, mask = model.embed(torch.tensor([[1, 5, 6, 9]])), torch.ones(1, 4, dtype=torch.long)

        def new(seed: int, **options: Any) -> list[int]:
            torch.manual_seed(seed)
            config = GenerationConfig(**options)
            ids = model.generate(row, mask, max_new_tokens=8, generation_config=config)
            assert ids.shape[0] == 1, f"one prompt gave {ids.shape[0]} answers"
            assert ids.shape[1] <= 8, "more tokens than asked for"
            return ids[0].tolist()  # type: ignore[no-any-return]

        sampled = [new(seed, do_sample=True, temperature=5.0, min_new_tokens=8) for seed in (0, 0, 1, 2, 3)]
        assert sampled[0] == sampled[1], "the same seed gives other samples"
        assert any(other != sampled[0] for other in sampled[2:]), "other seeds give the same samples"
        greedy = model.generate(row, mask, max_new_tokens=8)[0].tolist()
        assert new(0, do_sample=False) == greedy, "greedy by `generation_config` is not greedy without"
        new(0, num_beams=2)

    def test_packed_prompts_are_read_as_if_alone(self) -> None:
        """Troubleshooting: where `packs` is true, attention stays within a prompt, and positions count from its first
        token. Checked where the part has it (`PacksPrompts`).
        """
        import torch

        from lyrics.core.contracts import PacksPrompts

        model = self.build()
        packing = model if isinstance(model, PacksPrompts) else None
        if packing is None or not packing.packs:
            return
        row = model.embed(torch.tensor([[1, 5, 6, 7, 8, 9, 5]]))
        packed = packing(row, None, torch.tensor([[0, 1, 2, 0, 1, 2, 3]]))
        alone = [model(part, torch.ones(part.shape[:2], dtype=torch.long)) for part in (row[:, :3], row[:, 3:])]
        close(packed, torch.cat(alone, dim=1), "logits of packed prompts and of each alone")

    def test_a_conversation_goes_on_from_what_was_read(self) -> None:
        """Troubleshooting: `resume` gives the ids of `generate`, whatever `past` holds of another prompt or of other
        weights. Checked where the part has it (`ResumesPrompts`).
        """
        import torch

        from lyrics.core.contracts import ResumesPrompts
        from lyrics.core.language.past import Past

        model = self.build()
        resuming = model if isinstance(model, ResumesPrompts) else None
        if resuming is None:
            return
        past = Past()
        ids = [1, 5, 6, 9, 7, 8]

        def compare(prompt: list[int], what: str) -> list[int]:
            row = model.embed(torch.tensor([prompt]))
            wanted = model.generate(row, torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=4)[0].tolist()
            found = resuming.resume(row, prompt, past, max_new_tokens=4)[0].tolist()
            assert found == wanted, f"{what}: `resume` gives {found}, `generate` {wanted}"
            return wanted  # type: ignore[no-any-return]

        answer = compare(ids, "a first prompt")
        compare([*ids, *answer, 5, 6], "the same, longer")
        compare([*ids[:3], 10, 11, 12], "a prompt that begins alike")
        compare([12, *ids], "a prompt that begins otherwise")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.mul_(-1.0)
        compare([12, *ids, *answer], "weights that have changed")

    def test_prompts_that_came_at_different_times_go_on_together(self) -> None:
        """Troubleshooting: the logits of a running batch are those of each prompt alone, whatever joins and leaves it.
        Checked where the part has it (`ContinuesTogether`), and `running()` gives one.
        """
        import torch

        from lyrics.core.contracts import ContinuesTogether

        model = self.build()
        running = model.running() if isinstance(model, ContinuesTogether) else None
        if running is None:
            return
        ends = set(model.ends)
        assert ends, "no token ends an answer"
        assert ends <= set(range(len(model.tokenizer))), f"ends are no tokens: {ends}"

        def compare(found: torch.Tensor, rows: list[list[int]], what: str) -> None:
            whole = [torch.tensor([row]) for row in rows]
            wanted = [model(model.embed(ids), torch.ones_like(ids))[0, -1] for ids in whole]
            close(found, torch.stack(wanted), f"logits {what}", tolerance=1e-3)

        with torch.no_grad():
            first, second = [1, 5, 6, 9], [1, 7]
            ids, mask = torch.tensor([first, [0, 0, *second]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
            compare(running.join(model.embed(ids), mask), [first, second], "of two prompts")
            first, second = [*first, 8], [*second, 10]
            compare(running.read(torch.tensor([8, 10])), [first, second], "of a token more")
            third = [1, 11, 12, 13, 5, 6, 7]
            ids = torch.tensor([third])
            compare(running.join(model.embed(ids), torch.ones_like(ids)), [third], "of a prompt that joined")
            running.keep([2, 1])
            rows = [[*third, 9], [*second, 6]]
            compare(running.read(torch.tensor([9, 6])), rows, "after a prompt has left")

    def test_chat_template_exists(self) -> None:
        from lyrics.core.errors import LyricsError
        from lyrics.core.language.chat_templates import template_named

        model = self.build()
        try:
            template_named(model.chat_template, model.tokenizer)
        except LyricsError as error:
            raise AssertionError(str(error)) from error

    def test_adaptation_says_what_is_trained(self) -> None:
        model = self.build()
        assert model.adaptation in ("lora", "frozen", "full"), model.adaptation
        trained = [parameter.requires_grad for parameter in model.parameters()]
        expected = {"frozen": not any(trained), "full": all(trained), "lora": any(trained) and not all(trained)}
        assert expected[model.adaptation], (
            f"adaptation {model.adaptation!r}: {sum(trained)} of {len(trained)} tensors are trained"
        )

    def test_trains_in_stage_2(self) -> None:
        """Troubleshooting: the gradient must reach the embeddings that are given, and every parameter that asks for
        one.
        """
        trains_in_stage_2(SmallModel.around(self.part))

    def test_saves_loads_and_answers(self) -> None:
        """Troubleshooting: whatever the results depend on belongs into parameters, persistent buffers, options or the
        tokenizer.
        """
        saves_loads_and_answers(SmallModel.around(self.part))

    def test_memory_is_counted(self) -> None:
        """Troubleshooting: `lyrics check` runs the part on the meta device, where tensors have no values: no `.item()`,
        no `if tensor`.
        """
        memory_is_counted(SmallModel.around(self.part))

    def test_lora_merges_and_comes_out_again(self) -> None:
        """Troubleshooting: merging changes no results, `lora_merged` says that it is done, and it can be undone."""
        import torch

        from lyrics.core.errors import WeightsError

        model = SmallModel.around(self.part).build()
        lora = model.abilities.lora
        if lora is None or model.language_model.adaptation != "lora":
            return
        torch.manual_seed(2)
        with torch.no_grad():
            for parameter in model.language_model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))  # updates begin with nothing to merge
        before = what_it_computes(model)["logits"]
        model.merge_lora()
        assert lora.lora_merged, "lora_merged is False after merge_lora"
        close(
            what_it_computes(model)["logits"], before, "logits with LoRA merged and beside the weights", tolerance=1e-3
        )
        try:
            SmallModel.around(self.part).kept(model)
        except WeightsError:
            pass
        else:
            raise AssertionError("a model whose LoRA is merged was saved")
        model.unmerge_lora()
        assert not lora.lora_merged, "lora_merged is True after unmerge_lora"
        close(what_it_computes(model)["logits"], before, "logits before merging and after unmerging", tolerance=1e-3)


class ObjectiveContract(ModuleContract):
    """Says which streams it needs, and turns their outputs into a (sum, count) per loss."""

    kind = "objective"
    context: ClassVar[Mapping[str, Any]] = {"query_dim": 16, "query_segments": ("V", "G", "S", "C")}

    def _loss(self, objects: Sequence[int], caption_lengths: Sequence[int], *, first: int = 0) -> tuple[Any, Any]:
        """(module, its loss) on one sample per entry: so many objects, so many caption tokens."""
        objective = self.build().train()
        return objective, objective_loss(objective, self.context["query_dim"], objects, caption_lengths, first=first)

    def test_loss_is_a_sum_with_its_count(self) -> None:
        """Troubleshooting: return `Loss(sum over the terms, number of terms)`, not a mean.

        Means are taken over all ranks at once.
        """
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
        """Troubleshooting: a batch without objects, or with an empty caption, gives a finite loss.

        Without terms it is exactly 0.
        """
        import torch

        for objects, lengths in (([0, 0], [3, 2]), ([1, 0], [0, 0]), ([0], [0])):
            loss = self._loss(objects, lengths)[1]
            assert torch.isfinite(loss.sum), f"objects {objects}, caption lengths {lengths}: sum is {loss.sum}"
            assert loss.count or loss.sum == 0, "a loss without terms must be 0"

    def test_comparing_samples_is_declared(self) -> None:
        """Troubleshooting: a loss that is not the sum of those of two halves of a batch compares samples.

        Say so in the component's record: `capabilities=("compares_across_batch",)`; several micro-batches are then
        refused, where they would change what is learned.
        """
        from lyrics.core.contracts import WithNegatives

        objective, whole = self._loss([2, 1, 3, 2], [4, 2, 6, 3])
        if isinstance(objective, WithNegatives) or "compares_across_batch" in self.entry.component.capabilities:
            return
        halves = [self._loss([2, 1], [4, 2])[1], self._loss([3, 2], [6, 3], first=2)[1]]
        assert whole.count == sum(half.count for half in halves), "the count of a batch is not that of its halves"
        close(whole.sum, halves[0].sum + halves[1].sum, "the loss of a batch and of its halves", tolerance=1e-3)

    def test_streams_have_the_segments_of_the_query_transformer(self) -> None:
        """Troubleshooting: take segments from `context.query_segments`, and declare those that you cannot do without in
        the options (`needs_segments`).
        """
        from lyrics.core.build import build_part
        from lyrics.core.contracts import BuildContext
        from lyrics.core.resolve import declared_segments

        needs = set(declared_segments(self.part, "needs_segments") or ())
        for segments in (("V",), ("V", "C"), ("V", "S"), ("V", "G", "S", "C")):
            if not needs <= set(segments):
                continue
            context = BuildContext("random", query_dim=self.context["query_dim"], query_segments=segments)
            objective = build_part(self.part, context)
            for stream in objective.streams(pretrain_batch([2, 1], [3, 2])):
                named = {*stream.text, *stream.wanted, *(one for pair in stream.visibility for one in pair)}
                assert named <= set(segments), (
                    f"stream {stream.name!r} has {', '.join(sorted(named - set(segments)))}, where the segments are "
                    f"{segments}"
                )
            objective_loss(objective, self.context["query_dim"], [2, 1], [3, 2], segments=segments)

    def test_streams_do_not_depend_on_values_of_parameters(self) -> None:
        """Troubleshooting: in training, loader workers declare the streams with a copy on the meta device, where
        tensors have no values. What they depend on belongs into options, or attributes that are no tensors.
        """
        import torch

        from lyrics.core.stage1.texts import twin

        objective = self.build().train()
        batch = pretrain_batch([2, 1], [3, 2])
        for one, other in zip(objective.streams(batch), twin(objective, "meta").streams(batch), strict=True):
            assert (one.name, dict(one.visibility)) == (other.name, dict(other.visibility)), f"stream {one.name!r}"
            for segment, text in one.text.items():
                assert torch.equal(text.ids_RL, other.text[segment].ids_RL), f"{segment} of stream {one.name!r}"


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
        """Troubleshooting: `picture(sample)` gives a PIL image, upright and RGB.

        `lyrics.core.pictures.images.decode_image` makes one of bytes.
        """
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
            assert isinstance(picture, Image.Image), f"an image is a {type(picture).__name__}"
            assert picture.mode == "RGB", f"an image's mode is {picture.mode}"
            assert picture.tobytes() == again.picture(sample).tobytes(), f"the image of {sample.source} changes"
        assert opened or not samples, "no image of the first samples can be opened"

    def test_survives_the_way_to_a_loader_worker(self) -> None:
        """Troubleshooting: data sets are pickled into workers.

        Open files on first use and leave them out of the pickled state.
        """
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
