"""Which protocol each built-in part keeps: read by mypy alone, which reports what a part lacks. Nothing here runs."""

from __future__ import annotations

from lyrics.core import contracts
from lyrics.core.data.readers.dataset import RecordDataset
from lyrics.core.evaluation.benchmark import DatasetBenchmark, Judges
from lyrics.core.stage1.streams import Features, ProjectedFeatures
from lyrics.plugins.cached.experts import CachedDetector, CachedSegmenter, CachedTagger
from lyrics.plugins.causal_lm.model import CausalLM
from lyrics.plugins.causal_lm.running import RunningCache
from lyrics.plugins.clip_vit.encoder import VitEncoder
from lyrics.plugins.connectors.mlp import MlpProjector
from lyrics.plugins.connectors.resampler import PerceiverResampler
from lyrics.plugins.grounding_dino.detector import GroundingDino
from lyrics.plugins.hf.detector import HfDetector
from lyrics.plugins.hf.encoder import HfImageEncoder
from lyrics.plugins.hf.segmenter import HfSegmenter
from lyrics.plugins.hf.zero_shot import HfZeroShotDetector
from lyrics.plugins.mqformer.model import MQFormer
from lyrics.plugins.objectives.icg import ICG
from lyrics.plugins.objectives.itc import ITC
from lyrics.plugins.objectives.itm import ITM
from lyrics.plugins.objectives.msp import MSP
from lyrics.plugins.ram_plus.tagger import RamTagger
from lyrics.plugins.sam_hq.segmenter import SamHq
from lyrics.plugins.scenes.dataset import Scenes
from lyrics.plugins.timm_vit.encoder import TimmVit
from lyrics.plugins.tiny.detector import TinyDetector
from lyrics.plugins.tiny.segmenter import TinySegmenter
from lyrics.plugins.tiny.tagger import TinyTagger
from lyrics.plugins.tiny.vit import TinyVit

encoders: list[type[contracts.ImageEncoder]] = [VitEncoder, TimmVit, TinyVit, HfImageEncoder]
taggers: list[type[contracts.Tagger]] = [RamTagger, TinyTagger, CachedTagger]
detectors: list[type[contracts.Detector]] = [
    GroundingDino,
    TinyDetector,
    CachedDetector,
    HfDetector,
    HfZeroShotDetector,
]
segmenters: list[type[contracts.Segmenter]] = [SamHq, TinySegmenter, CachedSegmenter, HfSegmenter]
query_transformers: list[type[contracts.QueryTransformer]] = [MQFormer, MlpProjector, PerceiverResampler]
readers: list[type[contracts.ReadsText]] = [MQFormer]
in_two_stages: list[type[contracts.WithStage1Parameters]] = [MQFormer]
projected: list[type[contracts.Projected]] = [Features, ProjectedFeatures]
language_models: list[type[contracts.LanguageModel]] = [CausalLM]
merging: list[type[contracts.MergesLora]] = [CausalLM]
caching: list[type[contracts.WithCache]] = [CausalLM]
packing: list[type[contracts.PacksPrompts]] = [CausalLM]
resuming: list[type[contracts.ResumesPrompts]] = [CausalLM]
continuing: list[type[contracts.ContinuesTogether]] = [CausalLM]
running: list[type[contracts.RunningPrompts]] = [RunningCache]
quantizing: list[type[contracts.HoldsIn4Bit]] = [CausalLM]
objectives: list[type[contracts.Objective]] = [ITC, ITM, ICG, MSP]
choosing: list[type[contracts.ChoosesNegatives]] = [ITC]
matching: list[type[contracts.WithNegatives]] = [ITM]
counting: list[type[contracts.CountsCorrect]] = [ITC, ITM, ICG, MSP]
writing: list[type[contracts.WritesCaptions]] = [ICG]
knowing: list[type[contracts.WithVocabulary]] = [HfDetector]
with_files: list[type[contracts.WithFiles]] = [
    GroundingDino,
    RamTagger,
    CausalLM,
    HfImageEncoder,
    HfDetector,
    HfSegmenter,
]
datasets: list[type[contracts.Dataset]] = [Scenes, RecordDataset]
in_shards: list[type[contracts.InShards]] = [RecordDataset]
benchmarks: list[type[contracts.Benchmark]] = [DatasetBenchmark]
judging: list[type[Judges]] = [DatasetBenchmark]
showing: list[type[contracts.ShowsImages]] = [DatasetBenchmark]
limiting: list[type[contracts.LimitsAnswers]] = [DatasetBenchmark]
