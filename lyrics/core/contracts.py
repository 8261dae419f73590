"""What each kind of component promises.

A plugin's ``build(options, context)`` returns an object of the shape below. Nothing has to be inherited: these are protocols, checked by
``lyrics.testing``. The experts (image encoder, tagger, detector, segmenter), the query transformer, the language model and the objectives
are ``torch.nn.Module``s. Importing this file imports no torch.

Shapes: B images, N image tokens, M detector tokens, K objects, Q queries, L text tokens, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lyrics.core.geometry import Box
from lyrics.core.types import DetectorOutput, ImageBatch, Preprocessing, Sample, SegmenterOutput, Tag

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as PILImage
    from transformers import GenerationConfig

    from lyrics.core.streams import Features, Stream, StreamOutputs
    from lyrics.core.training.batch import PretrainBatch
    from lyrics.core.training.step import Loss, StepState

Weights = Literal["pretrained", "random", "meta"]


@dataclass(frozen=True)
class BuildContext:
    """What a component may know about the model it is built for.

    Args:
        weights: ``pretrained`` loads what the options name; ``random`` initialises and downloads nothing; ``meta`` is ``random`` inside
            ``torch.device("meta")``, so that shapes and counts exist without memory.
        image_dim: ``feature_dim`` of the image encoder; 0 while the experts themselves are built.
        local_dims: ``feature_dim`` per local source (``detector``, ``segmenter``), in the order in which their tokens are concatenated.
        query_dim: ``hidden_size`` of the query transformer; 0 until it is built. Objectives size their heads by it.
        query_segments: ``segments`` of the query transformer: which of V, G (queries), S, C (texts) its streams may have.
        files: the part's own folder of the model folder that it is rebuilt from, where there is one: what ``save_files`` wrote.
        downloads: whether ``pretrained`` may use the network; pass it to ``lyrics.core.pretrained.locate_checkpoint``.
    """

    weights: Weights
    image_dim: int = 0
    local_dims: Mapping[str, int] = field(default_factory=dict)
    query_dim: int = 0
    query_segments: tuple[str, ...] = ()
    files: Path | None = None
    downloads: bool = True


class WithFiles(Protocol):
    """Optional, for an image encoder, an expert or a language model that needs more than tensors: its configuration, names of its tags.

    A model folder holds a folder of its own for each part that has these two. ``build`` finds it again as ``context.files``, and
    ``load_files`` is called once the tensors are there.
    """

    def save_files(self, folder: Path) -> None:
        """Write what the part needs beside its tensors to ``folder``, which exists. JSON and tokenizer files, no pickles."""
        ...

    def load_files(self, folder: Path) -> None:
        """Read it back. Raises ``WeightsError`` naming the file that is missing or broken."""
        ...


class KnowsOneWorld(Protocol):
    """Optional, for an image encoder or an expert of the refiner whose weights know one kind of image alone.

    ``world`` names that kind, and ``otherwise`` says what to use for other images; commands print both, once, when they meet one.
    """

    world: str
    otherwise: str

    def is_of_world(self, image: PILImage) -> bool:
        """Whether an RGB image may be of that kind. It is cheap: called once for each image of a command."""
        ...


class ImageEncoder(Protocol):
    """images [B,3,H,W] -> tokens [B,N,feature_dim]. Declares how a picture is prepared."""

    feature_dim: int
    preprocessing: Preprocessing

    def __call__(self, pixels_BCHW: torch.Tensor) -> torch.Tensor: ...


class Tagger(Protocol):
    """images -> per image its tags, best first."""

    preprocessing: Preprocessing

    def __call__(self, images: ImageBatch) -> list[list[Tag]]: ...


class Detector(Protocol):
    """images and, per image, the phrases to look for -> detections, and local tokens [B,M,feature_dim] with their mask.

    A detection's phrase is one of the image's phrases, letter for letter. An image without phrases has no detections.
    """

    feature_dim: int
    preprocessing: Preprocessing

    def __call__(self, images: ImageBatch, phrases: Sequence[Sequence[str]]) -> DetectorOutput: ...


class Segmenter(Protocol):
    """images and, per image, boxes in the original picture -> a mask and a token [feature_dim] for each box, in order."""

    feature_dim: int
    preprocessing: Preprocessing

    def __call__(self, images: ImageBatch, boxes: Sequence[Sequence[Box]]) -> SegmenterOutput: ...


class QueryTransformer(Protocol):
    """streams of queries and text + frozen features -> hidden states, ``hidden_size`` wide. See ``lyrics.core.streams``.

    ``segments`` says which of V, G (queries), S, C (texts) its streams may have; ``num_queries`` counts V and G; no text segment is
    longer than ``max_positions``. A vocabulary head that only stage 1 uses is called ``token_head``.
    """

    hidden_size: int
    num_queries: int
    max_positions: int
    segments: tuple[str, ...]
    tokenizer: Any

    def __call__(self, streams: Sequence[Stream], features: Features) -> StreamOutputs: ...


class LanguageModel(Protocol):
    """Embeds token ids, reads embeddings, and generates from embeddings.

    ``adaptation`` is ``lora``, ``frozen`` or ``full``; parameters that it does not train have ``requires_grad=False``. No sequence is
    longer than ``max_positions``. ``chat_template`` is a name of ``lyrics.core.prompts.TEMPLATES``.
    """

    hidden_size: int
    max_positions: int
    adaptation: str
    chat_template: str
    tokenizer: Any

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
        Decoding is greedy unless ``generation_config`` is given, whose options are those of ``lyrics.core.generation``
        with transformers' meaning; samples come from torch's global generators, which the caller has seeded.
        """
        ...


class Objective(Protocol):
    """Says which streams it needs, and turns their outputs into a (sum, count) of its loss.

    See ``lyrics.core.training.step``: three more methods, ``similarity``, ``negative_streams`` and ``accuracy``, are optional.
    """

    def streams(self, batch: PretrainBatch) -> Sequence[Stream]: ...

    def loss(self, state: StepState) -> Loss: ...


class Dataset(Protocol):
    """A reader of one public format: ``len`` and random access to ``Sample``s, the same every time, and to their pictures.

    Objects of this kind are pickled into loader workers: files are opened on first use, not before. A data set in shards may have
    ``shard_sizes``, the rows of each shard in row order; the sampler then stays within a few shards at a time (absent or None: no shards).

    What is raised decides what happens to a run (``lyrics.core.data.stream``): ``SampleError`` and ``ImageError`` replace the sample and
    are written to the ledger; ``OSError`` is the storage's and is retried or stops the run; anything else is a mistake in the code.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The sample of that row; its picture stays closed. Raises ``IndexError`` unless ``0 <= index < len``."""
        ...

    def picture(self, sample: Sample) -> PILImage:
        """The picture that ``sample.image`` names, which is not None: upright, RGB."""
        ...


class Benchmark(Protocol):
    """Samples, the prompt of each, and the metric of one evaluation.

    Used where they are there: ``picture(sample)``, ``judge(predictions, samples) -> Verdict`` and ``max_new_tokens``; see
    ``lyrics.core.evaluation.benchmark``.
    """

    def samples(self) -> Iterable[Sample]: ...

    def prompt(self, sample: Sample) -> str: ...

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Mapping[str, float]:
        """Metric name -> value. ``predictions[i]`` answers ``samples[i]``."""
        ...
