"""What each kind of component promises: all that core uses of a part, as protocols.

A plugin's ``build(options, context)`` returns an object of the shape below. Nothing has to be inherited: built parts
are compared with these protocols (``lyrics.core.build``), and ``lyrics.testing`` runs everything that core does with
them. All parts but data sets and benchmarks are ``torch.nn.Module``s. Importing this file imports no torch.

A kind has one protocol of what it must have. What a part may have beside that is a protocol of its own, marked
*optional*; which of them the parts of a model keep is found out once, when the model is made (``Abilities``).

Shapes: B images, N image tokens, M detector tokens, K objects, Q queries, R rows of a stream, n selected tokens, L text
tokens, D feature width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable

from lyrics.core.geometry import Box
from lyrics.core.registry.registry import Registry
from lyrics.core.types import DetectorOutput, ImageBatch, Preprocessing, Sample, SegmenterOutput, Tag

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as PILImage
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from lyrics.core.language.past import Past
    from lyrics.core.stage1.batch import PretrainBatch
    from lyrics.core.stage1.negatives import NegativePairs, Similarity
    from lyrics.core.stage1.state import Loss, StepState
    from lyrics.core.stage1.streams import Features, Stream, StreamOutputs

Weights = Literal["pretrained", "random", "meta"]


@dataclass(frozen=True)
class BuildContext:
    """What a component may know about the model it is built for.

    Args:
        weights: ``pretrained`` loads what the options name; ``random`` initializes and downloads nothing; ``meta``
            is ``random`` inside ``torch.device("meta")``, so that shapes and counts exist without memory.
        image_dim: ``feature_dim`` of the image encoder; 0 while the experts themselves are built.
        local_dims: ``feature_dim`` per local source (``detector``, ``segmenter``), in the order in which their
            tokens are concatenated.
        query_dim: ``hidden_size`` of the query transformer; 0 until it is built. Objectives size their heads by it.
        query_segments: ``segments`` of the query transformer: which of V, G (queries), S, C (texts) its streams may
            have.
        files: the part's own folder of the model folder that it is rebuilt from, where there is one: what
            ``save_files`` wrote.
        downloads: whether ``pretrained`` may use the network; pass it to
            ``lyrics.core.weights.pretrained.locate_checkpoint``.
        registry: where the model's parts were looked up, for ``lyrics.types.builtin_tokenizer``; None: everything
            installed.
        image_tokens: how many tokens of an image the encoder gives, where it says so (``WithNumTokens``); else 0.
    """

    weights: Weights
    image_dim: int = 0
    local_dims: Mapping[str, int] = field(default_factory=dict)
    query_dim: int = 0
    query_segments: tuple[str, ...] = ()
    files: Path | None = None
    downloads: bool = True
    registry: Registry | None = None
    image_tokens: int = 0


class Module(Protocol):
    """What core uses of ``torch.nn.Module``, which every part but a data set and a benchmark is."""

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def buffers(self) -> Iterator[torch.Tensor]: ...
    def children(self) -> Iterator[nn.Module]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
    def state_dict(self) -> Mapping[str, Any]: ...
    def register_forward_hook(self, hook: Callable[..., Any]) -> RemovableHandle: ...
    def register_forward_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle: ...
    def eval(self) -> Self: ...
    def requires_grad_(self, requires_grad: bool = ...) -> Self: ...


@runtime_checkable
class WithFiles(Protocol):
    """Optional, for an image encoder, an expert or a language model that needs more than tensors.

    Such as its configuration, or the names of its tags.

    A model folder holds a folder of its own for each part that has these two. ``build`` finds it again as
    ``context.files``, and ``load_files`` is called once the tensors are there.
    """

    def save_files(self, folder: Path) -> None:
        """Write what the part needs beside its tensors to ``folder``, which exists.

        JSON and tokenizer files, no pickles.
        """
        ...

    def load_files(self, folder: Path) -> None:
        """Read it back. Raises ``WeightsError`` naming the file that is missing or broken."""
        ...


@runtime_checkable
class KnowsOneWorld(Protocol):
    """Optional, for an image encoder or an expert of the refiner whose weights know one kind of image alone.

    ``world`` names that kind, and ``otherwise`` says what to use for other images; commands print both, once, when they
    meet one.
    """

    @property
    def world(self) -> str: ...

    @property
    def otherwise(self) -> str: ...

    def is_of_world(self, image: PILImage) -> bool:
        """Return whether an RGB image may be of that kind. It is cheap: called once for each image of a command."""
        ...


@runtime_checkable
class WithNumTokens(Protocol):
    """Optional, for an image encoder or a detector that gives the same number of tokens for every image.

    Memory is counted with a detector's. A query transformer that makes soft tokens of image tokens one by one knows
    their number by it (``BuildContext.image_tokens``).
    """

    @property
    def num_tokens(self) -> int: ...


@runtime_checkable
class WithVocabulary(Protocol):
    """Optional, for a detector that knows a closed set of phrases.

    It is asked for all of them where there is no tagger.
    """

    @property
    def vocabulary(self) -> Sequence[str]: ...


@runtime_checkable
class TokensWithBoxes(Protocol):
    """Optional, for a detector or a segmenter whose local tokens say where they are.

    The last four numbers of a token are center x, center y, width and height of its box as shares of the original
    image. Stored tokens can then follow a crop of it.
    """

    @property
    def tokens_end_in_boxes(self) -> Literal[True]: ...


class Expert(Module, Protocol):
    """What the image encoder and the experts of the refiner have in common: how an image is prepared for them."""

    @property
    def preprocessing(self) -> Preprocessing: ...


class ImageEncoder(Expert, Protocol):
    """images [B,3,H,W] -> tokens [B,N,feature_dim]."""

    @property
    def feature_dim(self) -> int: ...

    def __call__(self, pixels_BCHW: torch.Tensor) -> torch.Tensor: ...


class Tagger(Expert, Protocol):
    """images -> per image its tags, best first."""

    def __call__(self, images: ImageBatch) -> list[list[Tag]]: ...


class Detector(Expert, Protocol):
    """images and, per image, the phrases to look for -> detections, and local tokens [B,M,feature_dim] with their mask.

    A detection's phrase is one of the image's phrases, letter for letter. An image without phrases has no detections.
    """

    @property
    def feature_dim(self) -> int: ...

    def __call__(self, images: ImageBatch, phrases: Sequence[Sequence[str]]) -> DetectorOutput: ...


class Segmenter(Expert, Protocol):
    """images and, per image, boxes in the original image -> a mask and a token [feature_dim] for each box, in order."""

    @property
    def feature_dim(self) -> int: ...

    def __call__(self, images: ImageBatch, boxes: Sequence[Sequence[Box]]) -> SegmenterOutput: ...


class Projected(Protocol):
    """What ``QueryTransformer.project`` makes of the features of B images. Only the forward pass looks inside.

    ``Features`` itself is one: a query transformer that has nothing to prepare returns what it was given.
    """

    def followed_by(self, other: Self) -> Self:
        """Return the images of both, ``other``'s last. The two may differ in their numbers of local tokens."""
        ...


class QueryTransformer(Module, Protocol):
    """streams of queries and text + frozen features -> hidden states, ``hidden_size`` wide.

    See ``lyrics.core.stage1.streams``.

    ``segments`` says which of V, G (queries), S, C (texts) its streams may have: streams hold no others. V is always
    there. ``num_queries`` counts V and G; that many soft tokens reach the language model for each image. With S or C it
    is a ``ReadsText``, too.

    Options may declare ``segments``, ``image_dim`` and ``local_dims`` (as fields or properties); what does not fit is
    then found before anything is built.
    """

    @property
    def hidden_size(self) -> int: ...

    @property
    def num_queries(self) -> int: ...

    @property
    def segments(self) -> tuple[str, ...]: ...

    def project(self, features: Features) -> Projected:
        """Return what all forward passes of a step read of the features; called once for the images of this rank.

        With several ranks, also once for the images of others that this rank has as hard negatives; the two are then
        joined by ``followed_by``. Differentiable where it has parameters.
        """
        ...

    def __call__(self, streams: Sequence[Stream], features: Features | Projected) -> StreamOutputs:
        """The hidden states that the streams want. ``image_index_R`` of a stream counts the images of ``features``.

        Stage 1 calls it up to twice a step (the second time for hard negatives), stage 2 once, with one stream.
        """
        ...


@runtime_checkable
class ReadsText(Protocol):
    """Required of a query transformer with S or C among its segments.

    One without reads no text, and none of this is asked of it.

    No text segment is longer than ``max_positions``.
    """

    tokenizer: PreTrainedTokenizerBase

    @property
    def max_positions(self) -> int: ...

    def token_logits(self, hidden_nD: torch.Tensor) -> torch.Tensor:
        """Return logits over the vocabulary [n,V] of hidden states of text [n,hidden_size].

        Called in stage 1, on target rows only.
        """
        ...


@runtime_checkable
class WithStage1Parameters(Protocol):
    """Optional, for a query transformer of which stage 2 does not use all parameters."""

    def stage1_parameters(self) -> Iterable[nn.Parameter]:
        """Return those that only stage 1 trains, such as the head behind ``token_logits``; stage 2 freezes them."""
        ...


@runtime_checkable
class PlansAhead(Protocol):
    """Optional, for a query transformer that lays streams out before their features are there.

    In training a loader's worker then makes the tables of a step's first pass, and they are on the device when the
    step begins.
    """

    def planner(self, image_tokens: int) -> Callable[[Sequence[Stream], int, Mapping[str, int]], Planned]:
        """Return what lays streams out for a model as this one is now (device, type, training).

        Called as ``planner(streams, images, local_tokens)`` with the number of images and of each source's local
        tokens, in another process: it is pickled, holds no parameters, and touches no device. ``image_tokens`` are
        those of each image.
        """
        ...

    def run_planned(self, planned: Any, features: Any) -> StreamOutputs | None:
        """Run what a planner has laid out over what ``project`` has returned; the outputs are those of a call.

        None where it was laid out for other numbers of images or tokens.
        """
        ...


class Planned(Protocol):
    """What a planner returns: host tensors, pickled on the way from a worker."""

    def pin_memory(self) -> Any: ...


class LanguageModel(Module, Protocol):
    """Embeds token ids, reads embeddings, and generates from embeddings.

    ``adaptation`` is ``lora``, ``frozen`` or ``full``; parameters that it does not train have ``requires_grad=False``.
    No sequence is longer than ``max_positions``. ``chat_template`` is a name that
    ``lyrics.core.language.chat_templates.template_named`` knows.
    """

    tokenizer: PreTrainedTokenizerBase

    @property
    def hidden_size(self) -> int: ...

    @property
    def max_positions(self) -> int: ...

    @property
    def adaptation(self) -> str: ...

    @property
    def chat_template(self) -> str: ...

    def embed(self, input_ids_BL: torch.Tensor) -> torch.Tensor:
        """Token ids [B,L] -> embeddings [B,L,hidden_size]."""
        ...

    def __call__(self, embeddings_BLD: torch.Tensor, attention_mask_BL: torch.Tensor) -> torch.Tensor:
        """Embeddings and their mask (1 = read) -> logits [B,L,vocabulary]."""
        ...

    def generate(
        self,
        embeddings_BLD: torch.Tensor,
        attention_mask_BL: torch.Tensor,
        *,
        max_new_tokens: int,
        on_token: Callable[[int], None] | None = None,
        generation_config: GenerationConfig | None = None,
    ) -> torch.Tensor:
        """Left-padded embeddings -> ids of the new tokens only [B, at most max_new_tokens], without dropout.

        ``on_token`` is called with each id as it is chosen; it is only given with a batch of one and a single beam.
        Decoding is greedy unless ``generation_config`` is given, whose options are those of
        ``lyrics.core.language.generation`` with transformers' meaning; samples come from torch's global generators,
        which the caller has seeded. A language model that decodes greedily and in no other way may leave it out:
        options of generation are then refused.
        """
        ...


@runtime_checkable
class ScoresItsTokens(Protocol):
    """Optional, for a language model that says how probable the tokens of its answers were.

    Without it no answer has a confidence.
    """

    def generate_scored(
        self,
        embeddings_BLD: torch.Tensor,
        attention_mask_BL: torch.Tensor,
        *,
        max_new_tokens: int,
        on_token: Callable[[int], None] | None = None,
        generation_config: GenerationConfig | None = None,
        keys: Sequence[Hashable] = (),
        past: Past | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``generate``, and the natural logarithm of each new token's probability, float [B, as many tokens].

        The token that ends an answer has one, too; what stands behind it is NaN. The distribution is the model's own,
        before what sampling makes of it (temperature, ``top_p``). ``keys`` and ``past`` are given to a
        ``ResumesPrompts`` alone, for one prompt, and mean what they mean there.
        """
        ...


@runtime_checkable
class MergesLora(Protocol):
    """Optional, for a language model whose low-rank updates can be added to the weights they adapt."""

    @property
    def lora_merged(self) -> bool:
        """Whether they are; a merged model is not saved."""
        ...

    def merge_lora(self) -> None:
        """Add them, in place. Raises ``WeightsError`` where there are none."""
        ...

    def unmerge_lora(self) -> None:
        """Take them out again; exact to rounding."""
        ...


@runtime_checkable
class PacksPrompts(Protocol):
    """Optional, for a language model that can read several prompts in one row as if each stood alone."""

    @property
    def packs(self) -> bool:
        """Whether it does, as it is set up."""
        ...

    def __call__(
        self, embeddings_BLD: torch.Tensor, attention_mask_BL: torch.Tensor | None, positions_BL: torch.Tensor
    ) -> torch.Tensor:
        """Embeddings and the position of each in its prompt -> logits [B,L,vocabulary].

        A prompt begins where a position is not the one before it plus one, and sees nothing outside of itself. Without
        padding there is no mask.
        """
        ...


@runtime_checkable
class ResumesPrompts(Protocol):
    """Optional, for a language model that need not read again what it read of a conversation before."""

    def resume(
        self,
        embeddings_1LD: torch.Tensor,
        keys: Sequence[Hashable],
        past: Past,
        *,
        max_new_tokens: int,
        on_token: Callable[[int], None] | None = None,
        generation_config: GenerationConfig | None = None,
    ) -> torch.Tensor:
        """Answer one prompt as ``generate`` does, and keep in ``past`` what was read of it and of the answer.

        ``keys`` has one entry for each of the L embeddings: where it begins as ``past.keys`` does, the embeddings are
        those that were read. What ``past`` cannot be used for is read again; the ids [1, at most max_new_tokens] are
        those of ``generate``.
        """
        ...


class RunningPrompts(Protocol):
    """Prompts that a language model goes on with together, each at a place of its own: the rows of a running batch.

    Nothing of a row depends on the others but for rounding.
    """

    def join(self, embeddings_BLD: torch.Tensor, attention_mask_BL: torch.Tensor) -> torch.Tensor:
        """Read new prompts, left-padded; they become the last rows.

        Returns the logits behind each of them, [B,vocabulary].
        """
        ...

    def read(self, ids_R: torch.Tensor) -> torch.Tensor:
        """Read one token more of every row, int [R] -> the logits behind it, [R,vocabulary]."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows in this order, and drop the others."""
        ...


@runtime_checkable
class ContinuesTogether(Protocol):
    """Optional, for a language model that can go on with prompts that came at different times.

    Without it a server answers in whole batches: what comes while one is written waits for its end.
    """

    @property
    def ends(self) -> Sequence[int]:
        """Ids of the tokens that end an answer."""
        ...

    def running(self) -> RunningPrompts | None:
        """Return a running batch without rows; None where this model, as it is set up, has no such thing."""
        ...


@runtime_checkable
class WithCache(Protocol):
    """Optional, for a language model that keeps something for every token while it generates.

    Memory is counted with it.
    """

    @property
    def cache_numbers_per_token(self) -> int:
        """Numbers kept for each token of one sequence: keys and values of all layers."""
        ...


@runtime_checkable
class HoldsIn4Bit(Protocol):
    """Optional, for a language model that can be loaded with its weights in 4 bits.

    Memory is then also counted that way.
    """

    def weights_in_4bit(self) -> int:
        """Return how many of its weights would be held in 4 bits: linear layers, without the head and LoRA."""
        ...


class Objective(Module, Protocol):
    """Says which streams it needs, and turns their outputs into a (sum, count) of its loss.

    A module that owns its heads. Its streams do not depend on the values of its parameters: in training they are also
    declared in loader workers, by a copy of it on the meta device.

    Options may declare ``needs_segments`` (a field or property): the segments that its streams cannot be without. A
    query transformer that lacks one is then refused before anything is built. A loss that compares samples of a batch
    with each other declares the capability ``compares_across_batch`` (``Component.capabilities``): it is no sum over
    micro-batches.
    """

    def streams(self, batch: PretrainBatch) -> Sequence[Stream]:
        """Return what the first pass must run.

        Segments are those that the query transformer has (``BuildContext.query_segments``), and no others.
        """
        ...

    def loss(self, state: StepState) -> Loss:
        """Sum and count over this rank's batch."""
        ...


@runtime_checkable
class ChoosesNegatives(Objective, Protocol):
    """Optional, for an objective whose similarities choose the hard negatives.

    It declares ``compares_across_batch``.
    """

    def similarity(self, outputs: StreamOutputs, batch: PretrainBatch) -> Similarity:
        """Return logits of this rank's samples against those of all ranks. The result is passed on in ``StepState``."""
        ...


@runtime_checkable
class WithNegatives(Objective, Protocol):
    """Optional, for an objective that has a place in the second pass."""

    def negative_streams(self, batch: PretrainBatch, pairs: NegativePairs) -> Sequence[Stream]:
        """Return what that pass must run; ``loss`` finds their outputs beside those of the first."""
        ...


@runtime_checkable
class CountsCorrect(Objective, Protocol):
    """Optional, for an objective that a held-out evaluation can report on."""

    def accuracy(self, state: StepState) -> Mapping[str, tuple[int, int]]:
        """Name -> (how many are right, of how many)."""
        ...


@runtime_checkable
class ScoresPairs(Objective, Protocol):
    """Optional, for an objective that tells how well an image and a text belong together."""

    def relevance(self, outputs: StreamOutputs) -> Mapping[str, torch.Tensor]:
        """Return scores [B] of this rank's own pairs by a name of their own, larger where they fit better.

        ``outputs`` are those of its ``streams``.
        """
        ...


@runtime_checkable
class RestoresText(Objective, Protocol):
    """Optional, for an objective that hides tokens of the spatial text and has them restored."""

    def masked(self, batch: PretrainBatch) -> torch.Tensor:
        """Return which spatial tokens are hidden: bool [B, L] over ``batch.spatial``."""
        ...

    def restored(self, state: StepState) -> torch.Tensor:
        """Return the likeliest token in place of each hidden one: ids [n], sample after sample, on the host."""
        ...


@runtime_checkable
class WritesCaptions(Objective, Protocol):
    """Optional, for an objective that teaches the query transformer to write."""

    @property
    def ends_captions(self) -> bool:
        """Whether it also teaches where to end; only then is ``captions`` called."""
        ...

    def captions(
        self, query_transformer: QueryTransformer, features: Features, batch: PretrainBatch, longest: int
    ) -> list[list[int]]:
        """Captions of the batch's images as token ids, ``longest`` tokens at most.

        The batch's own captions are not read.
        """
        ...


def reader_of(query_transformer: QueryTransformer) -> ReadsText | None:
    """Return the same query transformer as one that reads text; None where its segments have none."""
    reads = "S" in query_transformer.segments or "C" in query_transformer.segments
    return query_transformer if reads and isinstance(query_transformer, ReadsText) else None


@dataclass(frozen=True, eq=False)
class Abilities:
    """What the query transformer and the language model of a model have beside what they must have.

    None where they lack it.
    """

    text: ReadsText | None
    ahead: PlansAhead | None
    stage1: WithStage1Parameters | None
    lora: MergesLora | None
    cache: WithCache | None
    in_4bit: HoldsIn4Bit | None

    @classmethod
    def of(cls, query_transformer: QueryTransformer, language_model: LanguageModel) -> Abilities:
        return cls(
            text=reader_of(query_transformer),
            ahead=query_transformer if isinstance(query_transformer, PlansAhead) else None,
            stage1=query_transformer if isinstance(query_transformer, WithStage1Parameters) else None,
            lora=language_model if isinstance(language_model, MergesLora) else None,
            cache=language_model if isinstance(language_model, WithCache) else None,
            in_4bit=language_model if isinstance(language_model, HoldsIn4Bit) else None,
        )


class Dataset(Protocol):
    """A reader of one public format.

    It gives ``len``, random access to ``Sample``s, the same every time, and their images.

    Objects of this kind are pickled into loader workers: files are opened on first use, not before.

    What is raised decides what happens to a run (``lyrics.core.data.stream``): ``SampleError`` and ``ImageError``
    replace the sample and are written to the ledger; ``OSError`` is the storage's and is retried or stops the run;
    anything else is a mistake in the code.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The sample of that row; its image stays closed. Raises ``IndexError`` unless ``0 <= index < len``."""
        ...

    def picture(self, sample: Sample) -> PILImage:
        """Return the image that ``sample.image`` names, which is not None: upright, RGB."""
        ...


@runtime_checkable
class InShards(Protocol):
    """Optional, for a data set whose rows lie in shards: the sampler then stays within a few of them at a time."""

    @property
    def shard_sizes(self) -> Sequence[int] | None:
        """The rows of each shard, in row order; None where there are no shards after all."""
        ...


class Benchmark(Protocol):
    """Samples, the prompt of each, and the metric of one evaluation.

    Optional are ``ShowsImages``, ``LimitsAnswers`` and ``lyrics.core.evaluation.benchmark.Judges``.
    """

    def samples(self) -> Iterable[Sample]: ...

    def prompt(self, sample: Sample) -> str: ...

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Mapping[str, float]:
        """Metric name -> value. ``predictions[i]`` answers ``samples[i]``."""
        ...


@runtime_checkable
class ShowsImages(Protocol):
    """Optional, for a benchmark that opens its images itself.

    Without it, ``sample.image`` is a path that the model opens.
    """

    def picture(self, sample: Sample) -> Any:
        """Return the image that ``sample.image`` names, which is not None, as the model's ``generate`` takes it."""
        ...


@runtime_checkable
class LimitsAnswers(Protocol):
    """Optional, for a benchmark whose answers have a length of their own."""

    @property
    def max_new_tokens(self) -> int: ...


#: What a built part of each kind must have.
PROTOCOLS: Mapping[str, type] = {
    "image-encoder": ImageEncoder,
    "tagger": Tagger,
    "detector": Detector,
    "segmenter": Segmenter,
    "query-transformer": QueryTransformer,
    "language-model": LanguageModel,
    "objective": Objective,
    "dataset": Dataset,
    "benchmark": Benchmark,
}


def members(protocol: type) -> tuple[str, ...]:
    """Return the names that a protocol declares, inherited ones included.

    Those of ``torch.nn.Module`` and of Python itself are left out.
    """
    found: dict[str, None] = {}
    for base in reversed(protocol.__mro__):
        if getattr(base, "_is_protocol", False) and base is not Module:
            found |= dict.fromkeys([*inspect.get_annotations(base), *vars(base)])
    return tuple(name for name in found if not name.startswith("_"))
