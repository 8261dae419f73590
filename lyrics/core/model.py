"""``LyricsModel``: the way of an image through a composed model: seen, trained on, and asked about.

Its parts, and which of their parameters a stage trains, are in ``composed.py``.
Shapes: P images, N image tokens, Q queries (visual, then grounding), S spatial tokens, L prompt tokens, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, Unpack, overload

import torch

from lyrics.core.answers import Answer, Confidence, read_answer
from lyrics.core.chat import Chat
from lyrics.core.composed import STREAM
from lyrics.core.conditions import CLEAR, Condition
from lyrics.core.data.collate import InstructionExamples, PretrainExamples
from lyrics.core.data.training_data import TrainingBatch, batch_of
from lyrics.core.finite import first_not_finite, is_finite, refuse
from lyrics.core.language.answering import answer_ids
from lyrics.core.language.generation import Decoding, GenerateOptions, GenerationOptions, decoding
from lyrics.core.language.past import Past
from lyrics.core.language.prompting import (
    NOTHING_DROPPED,
    DroppedText,
    Encoded,
    checked_prompt,
    fitted_prompt,
    instructions_of,
    snapped_dialogue,
    spatial_text,
)
from lyrics.core.language.prompts import Dialogue, Exchange, TokenPrompt, cut
from lyrics.core.language.soft_prompts import answer_losses, embed
from lyrics.core.language.text_stream import TextStream
from lyrics.core.pictures.images import ImageLike
from lyrics.core.pictures.inputs import Phrases, Pictures, instructions_for, picture_list
from lyrics.core.pictures.model_inputs import ModelImages, asked
from lyrics.core.refining.refinement import Refinement
from lyrics.core.renaming import renamed
from lyrics.core.saving import SavedModel
from lyrics.core.stage1.batch import PretrainBatch
from lyrics.core.stage1.negatives import Negatives
from lyrics.core.stage1.state import Loss
from lyrics.core.stage1.step import pretrain_accuracy, pretrain_losses
from lyrics.core.stage1.streams import Features
from lyrics.core.training_output import TrainingOutput, step_number, training_output

if TYPE_CHECKING:
    from transformers import GenerationConfig


class LyricsModel(SavedModel):
    """Image encoder and refiner (both frozen) -> query transformer -> projection -> language model.

    Made by ``lyrics.build_model``, read by ``lyrics.load_model`` and ``from_pretrained``.
    """

    # --- seeing ------------------------------------------------------------------------------------------------------

    def features(self, images: ModelImages, phrases: Phrases = None) -> tuple[Features, tuple[Refinement, ...]]:
        """Features of prepared images, and what the refiner saw. ``phrases`` replace the tagger's tags.

        They have a gradient where the image encoder is trained, and not otherwise.
        """
        images = images.normalized()
        with torch.set_grad_enabled(self.trains_encoder and torch.is_grad_enabled()):
            image_tokens_PND = self.encoder(images.by_expert["image_encoder"].pixels_BCHW)
        if self.refiner is None:
            if phrases is not None:
                warnings.warn("phrases: have no effect, as this model has no refiner to look for them.", stacklevel=2)
            unseen = (Refinement(size, name=name) for size, name in zip(images.sizes_px, images.names, strict=True))
            return Features(image_tokens_PND.to(self.dtype)), tuple(unseen)
        refined = self.refiner.refine(images, phrases)
        local = {source: (tokens.to(self.dtype), mask) for source, (tokens, mask) in refined.local.items()}
        return Features(image_tokens_PND.to(self.dtype), local), refined.refinements

    @renamed(pictures="images")
    def encode(
        self,
        images: ImageLike | Sequence[ImageLike] | ModelImages,
        instructions: str | Sequence[str] | None = None,
        *,
        phrases: Phrases = None,
        condition: Condition = CLEAR,
    ) -> Encoded:
        """Encode images into soft tokens [P,Q,D].

        Args:
            images: an image or several, whatever ``lyrics.core.pictures.images.open_image`` opens; or prepared ones.
            instructions: one for each image; a text alone for one image. None: none is read.
            phrases, condition: as for ``generate``; who sees blurred images (``lyrics.core.conditions``).

        Raises:
            ImageError: an image cannot be used; the message names it.
            PromptError: there are more or fewer instructions, or lists of phrases, than images.
        """
        prepared = self.processor.prepared(images, condition)
        texts = instructions_for(len(prepared), instructions)
        return self.encode_images(prepared.to(self.device, self.dtype), texts, phrases=phrases)

    def encode_images(
        self,
        images: ModelImages,
        instructions: Sequence[str],
        *,
        phrases: Phrases = None,
        dropped: DroppedText = NOTHING_DROPPED,
    ) -> Encoded:
        """Encode prepared images into soft tokens; training may leave spatial text out of what is read and told.

        One stream {V, G, S, C} in which everything sees everything (section 3.3: "semantic-aware visual feature
        extraction"); S is the spatial text and C the instruction, each where the spec's ``sees`` names it.
        """
        if not len(images):
            width = self.projection.out_features
            return Encoded(self.projection.weight.new_zeros(0, self.query_transformer.num_queries, width), (), ())
        features, refinements = self.features(images, phrases)
        return self.encode_features(features, refinements, instructions, dropped)

    def encode_features(
        self, features: Features, refinements: tuple[Refinement, ...], instructions: Sequence[str], dropped: DroppedText
    ) -> Encoded:
        """Encode what ``features`` returned of one or more images; ``encode_images`` without looking at them."""
        stream = self._stream(dropped.read(refinements), instructions)
        outputs = self.query_transformer([stream], features)
        queries_PQD = torch.cat([outputs(STREAM, segment) for segment in stream.wanted], dim=1)
        texts = dropped.told([spatial_text(refinement, self.spec.codec) for refinement in refinements])
        return Encoded(self.projection(queries_PQD), refinements, texts)

    # --- training ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        batch: TrainingBatch | None = None,
        *,
        images: ModelImages | None = None,
        text: Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
        images_per_text: Sequence[int] | None = None,
        seed: int = 0,
        step: int | None = None,
        longest: int | None = None,
        return_loss: Literal[True] = True,
    ) -> TrainingOutput:
        """Return the losses of a batch of either stage; one call, so that data parallelism sees one forward pass.

        Args:
            batch: what ``lyrics.data_collator`` makes of samples; or instead of it
            images, text, answers, captions, images_per_text: what ``model.processor`` makes of them.
            seed, step: fix the random draws of stage 1. Without ``step`` they come from torch's generator in training.
            longest: of stage 2, tokens that prompts are cut to.
            return_loss: transformers' ``Trainer.evaluate`` looks for it; there is no pass without losses.

        Raises:
            TypeError: there is no such batch.
            PromptError: there is nothing to learn from.
        """
        batch = batch_of(
            batch, images=images, text=text, answers=answers, captions=captions, images_per_text=images_per_text
        )
        if not isinstance(batch, PretrainExamples):
            return training_output(self.instruction_step(batch, longest=longest), {})
        losses = self.pretraining_step(batch, seed=seed, step=step_number(step, training=self.training))
        return training_output(losses, {name: slot.weight for name, slot in self.spec.objectives.items()})

    def pretraining_step(
        self, batch: PretrainExamples, *, seed: int, step: int, negatives: Negatives | None = None
    ) -> dict[str, Loss]:
        """Stage 1 (section 3.2): every objective's loss as a sum and a count over this rank's batch.

        Random draws (masked objects, hard negatives) are functions of (``seed``, ``step``, the samples' positions).
        Raises ``ValueError`` for a model without objectives.
        """
        ahead, losses = batch.ahead, self.computed_losses()
        if ahead is None or not self.training or not ahead.is_of(seed, step):
            features, texts = self.pretraining_inputs(batch, seed, step)
            return pretrain_losses(self.query_transformer, losses, features, texts, negatives)
        features, _ = self.features(batch.images.to(self.device, self.dtype))
        return pretrain_losses(self.query_transformer, losses, features, ahead.batch, negatives, ahead.planned)

    def pretraining_accuracy(
        self, batch: PretrainExamples, *, seed: int = 0, step: int = 0
    ) -> dict[str, tuple[int, int]]:
        """Return what the objectives get right on a batch: see ``lyrics.core.stage1.step.pretrain_accuracy``."""
        features, texts = self.pretraining_inputs(batch, seed, step, kinds=True)
        return pretrain_accuracy(self.query_transformer, self.losses, features, texts)

    def pretraining_inputs(
        self, batch: PretrainExamples, seed: int, step: int, *, kinds: bool = False
    ) -> tuple[Features, PretrainBatch]:
        """Return what the objectives read of a batch: frozen features, and texts as token ids.

        ``kinds`` also says of each spatial token whether it is markup, of a name or of a coordinate (to measure each).
        """
        if not self.objectives:
            raise ValueError(
                "this model has no objectives, so there is nothing to pretrain; name some of 'lyrics list objective'"
            )
        features, refinements = self.features(batch.images.to(self.device, self.dtype))
        kinds_of = partial(self._kinds, refinements) if kinds else None
        texts = self.texts.batch(refinements, batch.captions, batch.positions, batch.image_ids, seed, step, kinds_of)
        return features, texts

    def instruction_step(self, batch: InstructionExamples, *, longest: int | None = None) -> dict[str, Loss]:
        """Stage 2 (section 3.3): next-token loss on answers and what ends them, as one sum and count called ``answer``.

        The query transformer reads, for each image, the instruction that brings it in. ``longest`` cuts prompts to so
        many tokens; they are cut to the language model's positions in any case.
        """
        instructions = instructions_of(batch.dialogues, len(batch.images))
        encoded = self.encode_images(batch.images.to(self.device, self.dtype), instructions, dropped=batch.dropped)
        queries, most = self.query_transformer.num_queries, self.language_model.max_positions
        limit = min(longest or most, most)
        dialogues: list[Dialogue] = [dialogue for dialogue in batch.dialogues if dialogue]
        if batch.snap_iou is not None:
            dialogues = [snapped_dialogue(one, encoded, batch.snap_iou, self.spec.codec) for one in dialogues]
        prompts = [cut(self._prompt(dialogue, encoded, limit), limit, queries) for dialogue in dialogues]
        # Ranks that share out the language model must all run it equally often.
        shared = self.shards is not None
        losses = answer_losses(prompts, encoded.soft_tokens_PQD, self.language_model, one_pass=shared)
        return {"answer": Loss(torch.stack([one.sum for one in losses]).sum(), sum(one.count for one in losses))}

    # --- answering ---------------------------------------------------------------------------------------------------

    def _prompt(self, dialogue: Dialogue, encoded: Encoded, room: int) -> TokenPrompt:
        return fitted_prompt(dialogue, encoded, room, self.spec, self.language_model)

    @torch.no_grad()
    def answer(
        self,
        dialogues: Sequence[Dialogue],
        encoded: Encoded,
        *,
        max_new_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
        generation_config: GenerationConfig | None = None,
        seed: int | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Answer]:
        """Return the answer that each conversation ends without: greedy (section 5.1) unless an option says otherwise.

        Args:
            dialogues: conversations whose last exchange has no answer; they name images of ``encoded`` by number.
            encoded: the images.
            max_new_tokens: tokens of an answer at most; 64 unless given here or in ``generation_config``.
            on_text: called with each piece of text as it is written; one conversation and one beam only.
            generation_config, seed, options: as for ``generate``.

        Boxes in an answer are of the last image that came into its conversation.

        Raises:
            PromptError: a prompt is empty, too long, or names an image that is not there.
            SpecError: a generation option is out of range, or options exclude each other.
            TypeError: a generation option does not exist.
        """
        how = decoding(
            options,
            max_new_tokens=max_new_tokens,
            generation_config=generation_config,
            seed=seed,
            streamed=on_text is not None,
        )
        return self.decode(dialogues, encoded, how, on_text=on_text)

    @torch.no_grad()
    def decode(
        self,
        dialogues: Sequence[Dialogue],
        encoded: Encoded,
        how: Decoding,
        *,
        on_text: Callable[[str], None] | None = None,
        past: Past | None = None,
    ) -> list[Answer]:
        """``answer`` with generation options that are checked already.

        ``past`` is of one conversation, whose earlier prompt it read; what it can be used for is not read again.
        """
        if not dialogues:
            return []
        if on_text is not None and len(dialogues) > 1:
            raise ValueError(f"on_text follows one conversation, not {len(dialogues)}")
        prompts = [
            checked_prompt(dialogue, encoded, how.max_new_tokens, self.spec, self.language_model)
            for dialogue in dialogues
        ]
        soft = embed(prompts, encoded.soft_tokens_PQD, self.language_model, "left")
        if not is_finite(soft.embeddings_BLD):
            raise refuse(
                "the soft tokens" if not is_finite(encoded.soft_tokens_PQD) else "language_model (word embeddings)"
            )
        tokenizer = self.language_model.tokenizer
        stream = None if on_text is None else TextStream(tokenizer, on_text)
        with how.drawing(self.device):
            ids_BL, log_probs = answer_ids(
                prompts, soft, how, self.spec.language_model.use, self.language_model, stream, past
            )
        texts = tokenizer.batch_decode(ids_BL, skip_special_tokens=True)
        answers = []
        for text, dialogue, own in zip(texts, dialogues, log_probs, strict=True):
            shown = [encoded.refinements[picture] for exchange in dialogue for picture in exchange.images]
            answers.append(read_answer(text, self.spec.codec, shown[-1] if shown else None, Confidence.of(own)))
        return answers

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
        self, images: Pictures, text: str, **options: Unpack[GenerateOptions]
    ) -> Answer: ...

    @overload
    def generate(
        self, images: Sequence[Pictures] | ModelImages, text: Sequence[str], **options: Unpack[GenerateOptions]
    ) -> list[Answer]: ...

    @renamed(pictures="images", instructions="text")
    def generate(
        self,
        images: Pictures | Sequence[Pictures] | ModelImages = None,
        text: str | Sequence[str] | None = None,
        *,
        images_per_text: Sequence[int] | None = None,
        phrases: Phrases = None,
        max_new_tokens: int | None = None,
        generation_config: GenerationConfig | None = None,
        seed: int | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer | list[Answer]:
        """Answer one instruction, or each of a list in one batch: greedy (section 5.1) unless an option says otherwise.

        Args:
            images: of one instruction an image, a list of images, or None; of a list of instructions one of these for
                each; or what ``model.processor`` prepared. An image is whatever ``open_image`` of
                ``lyrics.core.pictures.images`` opens: a path, a PIL image, a numpy array [H,W,C], a tensor [C,H,W].
            text: what is asked.
            images_per_text: of prepared images.
            phrases: for each image, what the detector looks for in place of the tagger's tags; for one image a list of
                phrases will do.
            max_new_tokens: tokens of an answer at most; 64 unless given here or in ``generation_config``.
            generation_config: transformers' ``GenerationConfig``; options given by name take precedence over it.
            seed: of samples; the same seed gives the same samples of the same batch. None draws new ones each time. The
                global generators are left as they were.
            options: transformers' generation options by name (``num_beams``, ``do_sample``, ``temperature``, ``top_p``,
                ``repetition_penalty``, ...; all are in ``lyrics.core.language.generation.GenerationOptions``).
                ``temperature``, ``top_k``, ``top_p`` or ``min_p`` mean ``do_sample=True`` unless that is given.

        Returns:
            The answer of one instruction, or a list of answers of a list.

        Raises:
            ImageError: an image cannot be used; the message names it.
            PromptError: an instruction cannot be met.
            SpecError: a generation option is out of range, or options exclude each other.
            TypeError: a generation option does not exist.
        """
        question = asked(images, text, images_per_text)
        dialogues = [(Exchange(one, None, shown),) for one, shown in zip(question.text, question.numbers, strict=True)]
        how = decoding(options, max_new_tokens=max_new_tokens, generation_config=generation_config, seed=seed)
        answers = self.decode(dialogues, self.look(question.images, question.by_image, phrases=phrases), how)
        return answers[0] if isinstance(text, str) else answers

    @renamed(pictures="images")
    @torch.no_grad()
    def look(
        self,
        images: Sequence[ImageLike] | ModelImages,
        instructions: Sequence[str],
        *,
        phrases: Phrases = None,
        condition: Condition = CLEAR,
    ) -> Encoded:
        """``encode`` without dropout and without gradients, for answering.

        Raises ``NotFiniteError`` naming the first part that gives NaN or infinity.
        """

        def encode() -> Encoded:
            return self.encode(images, instructions, phrases=phrases, condition=condition)

        training = self.training
        self.eval()
        try:
            encoded = encode()
            if not is_finite(encoded.soft_tokens_PQD):
                raise refuse(first_not_finite(self.experts_by_path, self.projection, encode))
            return encoded
        finally:
            self.train(training)

    def chat(self, *images: Pictures, max_new_tokens: int = 256) -> Chat:
        """Begin a conversation, about images or about nothing: ``model.chat("dog.jpg").ask("What is it doing?")``."""
        return Chat(self, [one for entry in images for one in picture_list(entry)], max_new_tokens=max_new_tokens)
