"""The model ``lyrics`` of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval).

It needs ``pip install 'lyrics-vl[lmms-eval]'``.

    python -m lmms_eval --model lyrics --model_args pretrained=FOLDER --tasks mme --batch_size 8

Answers are greedy. docs/evaluation.md says which tasks give which number of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lmms_eval.api.model import lmms

from lyrics.core.dtypes import dtype_name
from lyrics.core.errors import SpecError, did_you_mean
from lyrics.core.evaluation import toolkits
from lyrics.core.evaluation.benchmark import Answerer

_ARGUMENTS = ("pretrained", "weights", "device", "dtype", "batch_size", "max_new_tokens")


class Lyrics(lmms):  # type: ignore[misc]
    """``generate_until`` for tasks with one image, several, or none.

    Args:
        pretrained: a model folder, a preset, a spec file, or a hub id.
        weights: ``pretrained``, or ``random`` to try a task out.
        device: where the model runs, such as ``cuda``; without it a GPU if there is one. Of several processes each
            takes its own.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``fp32``, ``bf16`` and ``fp16`` are the same.
        batch_size: questions that are answered together.
        max_new_tokens: of an answer; tasks that ask for more get so many, with a warning.
        model: answers in place of ``pretrained`` (in Python only).

    Raises ``SpecError`` for an argument that does not exist, and what loading a model raises.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "lyrics-tiny",
        weights: str = "pretrained",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int | str = 1,
        max_new_tokens: int | str = 512,
        model: Answerer | None = None,
        max_batch_size: object = None,
        **unknown: object,
    ) -> None:
        super().__init__()
        for name in unknown:
            raise SpecError(
                f"--model_args {name}: lyrics has no such argument; it has "
                f"{', '.join(_ARGUMENTS)}.{did_you_mean(name, _ARGUMENTS)}"
            )
        dtype = dtype_name(dtype, where="--model_args dtype")
        self.batch_size = _count("batch_size", batch_size)
        self.max_new_tokens = _count("max_new_tokens", max_new_tokens)

        import torch
        from accelerate import PartialState

        from lyrics.core.loading import load_model

        state = PartialState()
        self._rank, self._world_size = state.process_index, state.num_processes
        self.device = torch.device(device) if device and self._world_size == 1 else state.device
        self.model = model or load_model(pretrained, weights=weights, device=str(self.device), dtype=dtype)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """See ``lyrics.core.evaluation.toolkits``."""

        def done(context: str, asked: Mapping[str, Any], text: str) -> None:
            self.cache_hook.add_partial("generate_until", (context, asked), text)

        return toolkits.generate_until(
            self.model, requests, self.task_dict, batch=self.batch_size, most=self.max_new_tokens, done=done
        )

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        raise NotImplementedError(
            "lyrics answers in words and gives no likelihoods: take the task's generate_until variant (seedbench, not "
            "seedbench_ppl)."
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        raise NotImplementedError(
            "lyrics answers one round of a task: tasks whose output_type is generate_until_multi_round cannot be run."
        )


def _count(name: str, value: object) -> int:
    try:
        count = int(str(value))
    except ValueError:
        count = 0
    if count < 1:
        raise SpecError(f"--model_args {name}={value}: is a number from 1 on.")
    return count
