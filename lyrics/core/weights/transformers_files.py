"""Folders in transformers' format: read from the disk alone, and without running anything that they bring.

Every configuration, tokenizer and whole model that transformers loads is loaded here. A hub id becomes a local folder
first (``lyrics.core.weights.pretrained.locate_checkpoint``).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lyrics.core.errors import MissingRequirementError, SpecError, WeightsError, did_you_mean
from lyrics.core.json_reading import parse_json, read_json
from lyrics.core.registry.component import CheckpointOptions
from lyrics.core.weights.pretrained import first_line

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedConfig

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
#: How the name of a file in llama.cpp's format ends.
GGUF = ".gguf"
#: Files to fetch beside a checkpoint's tensors: its configurations.
CONFIG_FILES = (CONFIG_FILE, GENERATION_FILE)
#: Every tokenizer's folder has one of them.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
#: Files to fetch for a tokenizer.
TOKENIZER_PATTERNS = (
    *TOKENIZER_FILES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
#: Tensors of a transformers model, and not of other formats that lie beside them (``consolidated.safetensors``,
#: ``original/``).
MODEL_TENSORS = ("model*.safetensors", "model.safetensors.index.json")
#: Entries of a configuration that say how it was written, not what the model is.
_NOT_OF_THE_MODEL = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})
#: Entries that change no number that the model computes.
_NOT_COMPARED = frozenset(
    {"use_cache", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "quantization_config"}
)


def refuse_code(folder: Path) -> None:
    """Raise ``WeightsError`` where a folder asks for code of its own, or for a model elsewhere.

    ``auto_map`` in any of its JSON files names Python files that transformers would run; ``adapter_config.json`` names
    a base model that transformers would fetch.
    """
    if (folder / "adapter_config.json").exists():
        raise WeightsError(
            f"{folder}: holds a PEFT adapter (adapter_config.json), which names a base model elsewhere. "
            "Merge it into its base model with PEFT, and give the folder of the merged model."
        )
    for file in sorted(folder.glob("*.json")):
        if file.name.endswith((".index.json", "vocab.json", "tokenizer.json")) or not file.is_file():
            continue
        data = read_json(file, WeightsError)
        if _asks_for_backbone(data):
            raise WeightsError(
                f"{file}: has use_pretrained_backbone, which asks for the weights of another checkpoint. Nothing is "
                "fetched for a checkpoint but its own files. Set it to false."
            )
        if _asks_for_code(data):
            raise WeightsError(
                f"{file}: has an auto_map, which asks for Python code that comes with the checkpoint. Such code is "
                "never run. Use a checkpoint of a class that transformers has itself."
            )


def _asks_for_code(data: Any) -> bool:
    if isinstance(data, dict):
        return isinstance(data.get("auto_map"), dict | list | str) or any(map(_asks_for_code, data.values()))
    return isinstance(data, list) and any(map(_asks_for_code, data))


def _asks_for_backbone(data: Any) -> bool:
    if isinstance(data, dict):
        return bool(data.get("use_pretrained_backbone")) or any(map(_asks_for_backbone, data.values()))
    return isinstance(data, list) and any(map(_asks_for_backbone, data))


def load_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration of a checkpoint's folder.

    Raises ``WeightsError`` naming the file that is missing or broken.
    """
    from transformers import AutoConfig

    file = folder / CONFIG_FILE
    if not file.is_file():
        raise WeightsError(f"{file}: no such file; a checkpoint in transformers' format has one.")
    refuse_code(folder)
    with _explained(file, "not a configuration that can be read"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return config


def config_from_numbers(entries: Mapping[str, Any], where: str) -> PreTrainedConfig:
    """Return a configuration made of the entries of a ``config.json``, ``model_type`` among them.

    Raises ``SpecError`` that begins with ``where``: entries that are no configuration of that model type, that ask for
    code, or for the weights of another checkpoint.
    """
    from transformers import CONFIG_MAPPING

    entries = dict(entries)
    if _asks_for_code(entries) or _asks_for_backbone(entries):
        raise SpecError(f"{where}: auto_map and use_pretrained_backbone are not allowed; take them out.")
    model_type = entries.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        hint = did_you_mean(str(model_type), list(CONFIG_MAPPING))
        raise SpecError(f"{where}: model_type {model_type!r} is none that transformers knows.{hint}")
    made: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    try:
        config = made(**entries)
        unknown = _unknown_entries(entries, config)
    except ImportError as error:
        raise needs_package(where, error) from error
    except Exception as error:  # a configuration class validates in ways of its own
        raise SpecError(f"{where}: no configuration of a {model_type!r}: {first_line(error)}.") from error
    if unknown:
        raise SpecError(f"{where}: a {model_type!r} has no {', '.join(unknown)}.")
    return config


_ABSENT = object()


def _unknown_entries(entries: Mapping[str, Any], config: Any) -> list[str]:
    """Entries that a configuration keeps without knowing what they are."""
    default = type(config)()
    written = default.to_dict()  # what some classes read and keep under another name
    found = [
        name
        for name in entries
        if name != "model_type" and name not in written and getattr(default, name, _ABSENT) is _ABSENT
    ]
    for name, value in entries.items():
        inner = getattr(config, name, None)
        if isinstance(value, Mapping) and getattr(inner, "model_type", None) is not None:
            found += [f"{name}.{one}" for one in _unknown_entries(value, inner)]
    return found


def part_config(
    options: CheckpointOptions,
    *,
    files: Path | None,
    checkpoint: Path | None,
    model_types: Collection[str],
    numbers_of: Callable[[Any], Mapping[str, Any]],
    from_numbers: Callable[[Mapping[str, Any]], Any],
) -> Any:
    """Return the transformers configuration of a part.

    It is what the part's folder of a saved model holds, or else what lies beside the checkpoint, or else made of the
    options' numbers.

    Args:
        options: what the part is built from.
        files: the part's folder of the model folder that it is rebuilt from (``BuildContext.files``).
        checkpoint: the local file or folder with the checkpoint, where its weights are read.
        model_types: ``model_type`` of configurations that describe the part. Another one beside a checkpoint is
            passed over.
        numbers_of: a configuration -> its numbers by the names of the options.
        from_numbers: numbers by the names of the options -> a configuration.

    Raises:
        WeightsError: a configuration cannot be read, or the options state something else than it does.
        SpecError: random weights are wanted, and the sizes of the checkpoint are not known without downloading it.
    """
    named = _local_folder(options.checkpoint) if checkpoint is None else checkpoint
    folder = files if stored_config(files) is not None else named
    if folder is not None and folder.is_file():
        folder = folder.parent
    if folder is not None and _model_type(folder) in model_types:
        config = load_config(folder)
        # Random weights may be of a variant of a local checkpoint; they have no tensors to disagree with.
        if checkpoint is not None or folder is files or not options.stated:
            refuse_disagreements(options.stated, numbers_of(config), folder)
            return config
        return from_numbers({**numbers_of(config), **options.stated})
    if checkpoint is None and files is None and not options.is_known:
        missing = ", ".join(sorted(options.PUBLIC.keys() - options.stated.keys()))
        raise SpecError(
            f"the checkpoint {options.checkpoint!r} is not on this machine, and random weights download nothing, so "
            f"its sizes are not known. State {missing}, or give a local folder."
        )
    return from_numbers(options.numbers)


def _local_folder(checkpoint: str | None) -> Path | None:
    path = None if checkpoint is None else Path(checkpoint).expanduser()
    return path if path is not None and path.is_dir() else None


def _model_type(folder: Path) -> str | None:
    """What a folder's configuration says it is of; None where there is none that says so."""
    if not (folder / CONFIG_FILE).is_file():
        return None
    data = read_json(folder / CONFIG_FILE, WeightsError)
    return data.get("model_type") if isinstance(data, dict) else None


def load_generation_config(folder: Path) -> GenerationConfig | None:
    """Return the generation configuration of a checkpoint's folder, or None where it has none.

    Raises ``WeightsError``.
    """
    from transformers import GenerationConfig

    file = folder / GENERATION_FILE
    if not file.is_file():
        return None
    refuse_code(folder)
    with _explained(file, "not a generation configuration that can be read"):
        return GenerationConfig.from_pretrained(folder, local_files_only=True)


def load_tokenizer(folder: Path, tokenizer_class: Any = None) -> Any:
    """Return the tokenizer of a folder, of the class that the folder names unless one is given.

    Raises ``WeightsError`` when the folder holds none, or one that cannot be read.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise WeightsError(f"{folder}: holds no tokenizer; it should have one of {', '.join(TOKENIZER_FILES)}.")
    refuse_code(folder)
    advice = "Give the folder as transformers saves it, tokenizer_config.json included."
    with _explained(folder, "not a tokenizer that can be read", advice):
        tokenizer = (tokenizer_class or AutoTokenizer).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        # Some damage shows only where a text holds what the vocabulary lacks.
        tokenizer.decode(tokenizer("a \ue000", add_special_tokens=False)["input_ids"])
    return tokenizer


#: How the tensors of a language model are called in the checkpoint of a model that also looks or listens.
_PART_OF_WHOLE = {r"^model\.language_model\.": "model.", r"^language_model\.": ""}


def load_causal_lm(folder: Path, config: PreTrainedConfig, *, part_of_whole: bool = False, **options: Any) -> Any:
    """Return the causal language model of a checkpoint's folder, every tensor of it there, finite, and of the sizes of
    ``config``.

    ``part_of_whole``: the checkpoint is of a model that also looks or listens, and ``config`` of its language model.
    ``options`` are keyword arguments of transformers' ``from_pretrained``.

    Raises ``WeightsError`` naming what is missing, or of another size or type.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from lyrics.core.weights.tensors import bounded, check_finite, check_types, tensor_headers

    refuse_code(folder)
    headers = tensor_headers(folder)
    if getattr(config, "quantization_config", None) is None:
        check_types(headers, folder)
    loader: Any = AutoModelForCausalLM
    with bounded(headers.values(), folder), _explained(folder, "cannot be loaded"), _without_a_table(part_of_whole):
        model, report = loader.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            key_mapping=_PART_OF_WHOLE if part_of_whole else None,
            **options,
        )
    _refuse_missing(report["missing_keys"], folder, CONFIG_FILE)
    with torch.no_grad():
        check_finite(model.named_parameters(), folder)
    return model


def _refuse_missing(keys: Collection[str], source: Path, config: str) -> None:
    if missing := sorted(keys):
        raise WeightsError(
            f"{source}: lacks {len(missing)} tensors of its own {config}: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}. Fetch the checkpoint again."
        )


def gguf_file(place: Path) -> Path | None:
    """Return the GGUF file that a checkpoint is: the path itself, or the only one in a folder that holds no
    ``config.json``; None where it is none.
    """
    if place.is_file():
        return place if place.suffix == GGUF else None
    found = [] if (place / CONFIG_FILE).is_file() else sorted(place.glob(f"*{GGUF}"))
    return found[0] if len(found) == 1 else None


def load_gguf_config(file: Path) -> PreTrainedConfig:
    """Return the configuration that a GGUF file holds. Raises as ``load_gguf``."""
    from transformers import AutoConfig

    _check_gguf(file)
    with _explained(file, "not a GGUF file that can be read"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
    return config


def load_gguf(file: Path, config: PreTrainedConfig, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the causal language model of a GGUF file, its weights brought back to numbers of ``dtype``, and its
    tokenizer.

    Raises:
        MissingRequirementError: the package that reads such files is not installed.
        WeightsError: the file is broken, or of a family that transformers does not read from such files.
    """
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lyrics.core.weights.tensors import TensorHeader, bounded

    _check_gguf(file)
    loader: Any = AutoModelForCausalLM
    with _explained(file, "cannot be loaded"):
        headers = [TensorHeader(tuple(map(int, one.shape)), "F32") for one in gguf.GGUFReader(file).tensors]
        with bounded(headers, file):
            model, report = loader.from_pretrained(
                file.parent,
                gguf_file=file.name,
                config=config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
    _refuse_missing(report["missing_keys"], file, "configuration")
    # They are numbers like any others now, and are saved as such.
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(name, None)
    model.config.__dict__.pop("quantization_config", None)
    return model, tokenizer


def _check_gguf(file: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MissingRequirementError(f"{file}: needs gguf (not installed). Run: pip install 'lyrics-vl[gguf]'")
    refuse_code(file.parent)


@contextlib.contextmanager
def without_a_bar() -> Iterator[None]:
    """Inside, transformers shows no bar: it would come and go among a command's output."""
    from transformers.utils import logging as library

    shown = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bar()


@contextlib.contextmanager
def _without_a_table(unread: bool) -> Iterator[None]:
    """Where some tensors are not wanted, transformers is not to list them all."""
    from transformers.utils import logging as library

    before = library.get_verbosity()
    if unread:
        library.set_verbosity_error()
    try:
        yield
    finally:
        library.set_verbosity(before)


def save_config(model: Any, folder: Path) -> None:
    """Write the configuration of a transformers model, and its generation configuration if it has one.

    What is written says what the model is, and nothing of the machine it was made on.
    """
    write_config(model.config, folder)
    if getattr(model, "generation_config", None) is not None:
        (folder / GENERATION_FILE).write_text(model.generation_config.to_json_string(use_diff=True), encoding="utf-8")


def write_config(config: PreTrainedConfig, folder: Path) -> None:
    """Every entry is written out, defaults too, which another version of transformers may have changed."""
    text = json.dumps(_of_the_model(parse_json(config.to_json_string(use_diff=False))), indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def _of_the_model(data: Any) -> Any:
    """A configuration's entries without those that only say how and where it was written."""
    if isinstance(data, dict):
        return {name: _of_the_model(value) for name, value in data.items() if name not in _NOT_OF_THE_MODEL}
    return data


def stored_config(folder: Path | None) -> PreTrainedConfig | None:
    """Return the configuration that ``save_config`` wrote to a part's folder; None for no folder, or one without it.

    Raises ``WeightsError`` for a file that is broken.
    """
    if folder is None or not (folder / CONFIG_FILE).is_file():
        return None
    return load_config(folder)


def compare_config(config: PreTrainedConfig, folder: Path) -> None:
    """Hold a model's configuration against the one that ``save_config`` wrote, where it did.

    Raises ``WeightsError`` that lists all differences: the model would compute something else.
    """
    stored = stored_config(folder)
    if stored is None:
        return
    then, now = (_of_the_model(parse_json(one.to_json_string(use_diff=False))) for one in (stored, config))
    different = [
        f"{name} was {then[name]!r} and is {now[name]!r}"
        for name in sorted(then.keys() & now.keys() - _NOT_COMPARED)
        if then[name] != now[name]
    ]
    if different:
        raise WeightsError(
            f"{folder / CONFIG_FILE}: is not the configuration of the model that is being loaded: "
            f"{'; '.join(different)}. Load it with the checkpoint that it was saved with."
        )


def disagreements(stated: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Options that state another number than a checkpoint's configuration: ``NAME is 3, the checkpoint has 4``. None
    states nothing.
    """
    return [
        f"{name} is {_plain(value)!r}, the checkpoint has {_plain(found[name])!r}"
        for name, value in stated.items()
        if value is not None and name in found and found[name] is not None and _plain(value) != _plain(found[name])
    ]


def refuse_disagreements(stated: Mapping[str, Any], found: Mapping[str, Any], source: object) -> None:
    """Raise one ``WeightsError`` that lists all of ``disagreements``."""
    if problems := disagreements(stated, found):
        raise WeightsError(
            f"the options do not describe the checkpoint {source}: {'; '.join(problems)}. "
            "Leave these options out (null), and the checkpoint's own numbers are taken."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def needs_package(where: str, error: ImportError) -> MissingRequirementError:
    """Return what a model of transformers lacks that is made with another package, such as timm."""
    found = re.search(r"requires the (\S+) library", str(error))
    if found is None:
        return MissingRequirementError(f"{where}: needs a package that is not installed: {first_line(error)}.")
    return MissingRequirementError(
        f"{where}: needs the package {found[1]}, which is not installed. Run: pip install {found[1].lower()}"
    )


@contextlib.contextmanager
def _explained(where: Path, what: str, advice: str = "Fetch or save it again.") -> Iterator[None]:
    """Whatever a damaged file makes transformers raise becomes one ``WeightsError``."""
    try:
        yield
    except WeightsError:
        raise
    except ImportError as error:
        raise needs_package(str(where), error) from error
    except Exception as error:  # a file of any content can make transformers raise anything
        raise WeightsError(f"{where}: {what}: {first_line(error)}. {advice}") from error
