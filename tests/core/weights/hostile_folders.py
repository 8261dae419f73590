"""Model folders that try to do something: run code, ask, fetch, exhaust memory, or pass damaged weights for good ones.

Run as a program, ``python -m tests.core.weights.hostile_folders FOLDER``, it makes each of them in FOLDER, loads it
from inside of it under an audit hook, and prints what happened, a JSON object a line.
"""

from __future__ import annotations

import builtins
import json
import os
import pickle
import resource
import shutil
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Mutate = Callable[[Path], None]

#: What a file of code does when it is run.
_PAYLOAD = "import pathlib; pathlib.Path('ran').write_text('it ran')\nclass Evil: pass\ndef build(*a): return Evil()\n"
_AUTO_MAP = {
    "AutoConfig": "evil.Evil",
    "AutoModelForCausalLM": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", None],
}


def _edit(name: str, change: Callable[[Any], Any]) -> Mutate:
    """Change a JSON file of the folder; ``change`` returns the new content or changes what it is given."""

    def mutate(folder: Path) -> None:
        file = folder / name
        data = json.loads(file.read_text()) if file.exists() else {}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(change(data) or data))

    return mutate


def _put(name: str, content: str | bytes) -> Mutate:
    def mutate(folder: Path) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return mutate


def _spec(path: str, value: Any) -> Mutate:
    """Set a value of the specification."""

    def change(spec: Any) -> None:
        *parents, last = path.split(".")
        for key in parents:
            spec = spec[key]
        spec[last] = value

    return _edit("spec.json", change)


def _tensors(change: Callable[[dict[str, Any]], None]) -> Mutate:
    """Change the tensors of the folder."""

    def mutate(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return mutate


def _header(change: Callable[[dict[str, Any]], None]) -> Mutate:
    """Change the header of the safetensors file, and none of its bytes."""

    def mutate(folder: Path) -> None:
        file = folder / "model.safetensors"
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return mutate


def _first(tensors: dict[str, Any], ending: str = "weight", part: str = "") -> str:
    return next(name for name in sorted(tensors) if name.endswith(ending) and name.startswith(part))


def _fill(value: float, part: str) -> Mutate:
    def change(tensors: dict[str, Any]) -> None:
        tensors[_first(tensors, part=part)].view(-1)[0] = value

    return _tensors(change)


def _relabel(kind: str, part: str) -> Mutate:
    def change(header: dict[str, Any]) -> None:
        header[_first(header, part=part)]["dtype"] = kind

    return _header(change)


def _reshape(header: dict[str, Any]) -> None:
    name = next(name for name in sorted(header) if name.endswith("weight") and len(header[name]["shape"]) == 2)
    header[name]["shape"] = header[name]["shape"][::-1]


def _bare_pickle(name: str) -> Mutate:
    """A pickle in the place of the tensors; opened, it would call ``os.system``."""

    class Bomb:
        def __reduce__(self) -> Any:
            return os.system, ("touch ran",)

    def mutate(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Bomb()))

    return mutate


def _nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def _link(name: str, target: str) -> Mutate:
    def mutate(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return mutate


def _index(shard: str) -> Mutate:
    def mutate(folder: Path) -> None:
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", framework="pt") as tensors:
            names = list(tensors.keys())
        _put("model.safetensors.index.json", json.dumps({"weight_map": dict.fromkeys(names, shard)}))(folder)

    return mutate


def _checkpoint(*mutations: Mutate) -> Mutate:
    """Changes of the language model's checkpoint, which lies within the folder of trained parts."""

    def mutate(folder: Path) -> None:
        for one in mutations:
            one(folder / "language-model")

    return mutate


_LM = "parts/language_model/config.json"
_BIG = 1_000_000_000


def _sizes(file: str, **numbers: int) -> Mutate:
    """Numbers of a configuration, which the options leave to it."""

    def mutate(folder: Path) -> None:
        _edit(file, lambda data: {**data, **numbers})(folder)
        for option in ("num_layers", "hidden_size", "vocab_size", "num_heads", "intermediate_size"):
            _spec(f"language_model.options.{option}", None)(folder)

    return mutate


#: Name -> what is done to a folder that holds all tensors.
WHOLE: dict[str, Mutate] = {
    "spec: an import path": _spec("image_encoder.use", "evil:build"),
    "spec: a dotted import path": _spec("image_encoder.use", "evil.Evil"),
    "spec: a path for a name": _spec("image_encoder.use", "../evil"),
    "spec: code beside it": _spec("code", "import evil"),
    "spec: an option that is none": _spec("language_model.options.trust_remote_code", True),
    "spec: a list": _put("spec.json", "[1, 2]"),
    "spec: no JSON": _put("spec.json", "import evil"),
    "spec: nested too deeply": _put("spec.json", _nested(100_000)),
    "spec: no UTF-8": _put("spec.json", b'{"codec": "\xff\xfe"}'),
    "spec: a YAML tag": _put("spec.json", "!!python/object/apply:os.system ['touch ran']"),
    "auto_map: language model's configuration": _edit(_LM, lambda data: {**data, "auto_map": _AUTO_MAP}),
    "auto_map: generation configuration": _edit(
        "parts/language_model/generation_config.json", lambda data: {**data, "auto_map": _AUTO_MAP}
    ),
    "auto_map: language model's tokenizer": _edit(
        "tokenizers/language_model/tokenizer_config.json", lambda data: {**data, "auto_map": _AUTO_MAP}
    ),
    "auto_map: query transformer's tokenizer": _edit(
        "tokenizers/query_transformer/tokenizer_config.json", lambda data: {**data, "auto_map": _AUTO_MAP}
    ),
    "auto_map: a processor beside the tokenizer": _put(
        "tokenizers/language_model/preprocessor_config.json", json.dumps({"auto_map": {"AutoProcessor": "evil.Evil"}})
    ),
    "auto_map: nested": _edit(_LM, lambda data: {**data, "text_config": {"auto_map": _AUTO_MAP}}),
    "auto_map: of a family that transformers does not have": _edit(
        _LM, lambda data: {**data, "model_type": "evil", "auto_map": _AUTO_MAP}
    ),
    "configuration: a family that transformers does not have": _edit(_LM, lambda data: {**data, "model_type": "evil"}),
    "configuration: another family": _edit(_LM, lambda data: {**data, "model_type": "bert"}),
    "configuration: a pretrained backbone": _edit(
        _LM, lambda data: {**data, "backbone": "evil/repo", "use_pretrained_backbone": True}
    ),
    "configuration: an adapter": _put(
        "parts/language_model/adapter_config.json", json.dumps({"base_model_name_or_path": "evil/base"})
    ),
    "configuration: no JSON": _put(_LM, "{"),
    "configuration: of the wrong types": _edit(_LM, lambda data: {**data, "hidden_size": "many"}),
    "configuration: nested too deeply": _put(_LM, _nested(100_000)),
    "configuration: no heads": _edit(_LM, lambda data: {**data, "num_attention_heads": 0}),
    "tokenizer: damaged": _put("tokenizers/language_model/tokenizer.json", '{"model": {"type": "BPE"}}'),
    "tokenizer: no JSON": _put("tokenizers/query_transformer/tokenizer.json", b"\x80\x04evil"),
    "tokenizer: absent": lambda folder: (folder / "tokenizers/query_transformer/tokenizer.json").unlink(),
    "preprocessing: no JSON": _put("preprocessing.json", "["),
    "pickle: pytorch_model.bin": _bare_pickle("pytorch_model.bin"),
    "pickle: model.pt": _bare_pickle("model.pt"),
    "pickle: under a safe name": _bare_pickle("model.safetensors"),
    "index: a shard outside": _index("../model.safetensors"),
    "index: an absolute path": _index("/etc/passwd"),
    "index: a pickle": _index("pytorch_model.bin"),
    "index: a shard that is not there": _index("model-00001-of-00002.safetensors"),
    "index: no JSON": _put("model.safetensors.index.json", "}"),
    "tensors: NaN in the language model": _fill(float("nan"), "language_model."),
    "tensors: NaN in an expert": _fill(float("nan"), "refiner.detector."),
    "tensors: infinity in the query transformer": _fill(float("inf"), "query_transformer."),
    "tensors: floats relabeled as int32": _relabel("I32", "language_model."),
    "tensors: floats relabeled as uint32": _relabel("U32", "query_transformer."),
    "tensors: one is missing": _tensors(lambda tensors: tensors.__delitem__(_first(tensors))),
    "tensors: one too many": _tensors(lambda tensors: tensors.update({"evil": next(iter(tensors.values())).clone()})),
    "tensors: of another shape": _header(_reshape),
    "tensors: cut short": lambda folder: os.truncate(folder / "model.safetensors", 5000),
    "tensors: a header without an end": _put("model.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
    "tensors: a dangling link": _link("model.safetensors", "/nowhere/at/all"),
    "sizes: a width of 10^9": _spec("query_transformer.options.hidden_size", _BIG),
    "sizes: 10^6 layers of the query transformer": _spec("query_transformer.options.num_layers", 1_000_000),
    "sizes: 10^9 queries": _spec("query_transformer.options.num_visual", _BIG),
    "sizes: an image encoder of 10^9": _spec("image_encoder.options.width", _BIG),
    "sizes: 10^6 layers in the configuration": _sizes(_LM, num_hidden_layers=1_000_000),
    "sizes: a width of 10^9 in the configuration": _sizes(_LM, hidden_size=_BIG),
    "sizes: 10^12 words in the configuration": _sizes(_LM, vocab_size=10**12),
    "sizes: another than the options state": _edit(_LM, lambda data: {**data, "num_hidden_layers": 3}),
    "sizes: an objective of 10^9": _spec("objectives.itc.options.projection_dim", _BIG),
}

#: Name -> what is done to a folder of trained parts, whose frozen parts come from where the specification says.
TRAINED: dict[str, Mutate] = {
    "package: a module beside the folder": _spec("language_model.options.checkpoint", "package:evil/x"),
    "package: a module within one": _spec("language_model.options.checkpoint", "package:evil_package.inner/x"),
    "package: of the standard library": _spec("language_model.options.checkpoint", "package:json/decoder.py"),
    "package: a dotted name": _spec("language_model.options.checkpoint", "package:lyrics.core/x"),
    "package: out of it": _spec("language_model.options.checkpoint", "package:lyrics/../../../../../../etc"),
    "hub: a language model": _spec("language_model.options.checkpoint", "evil/repo"),
    "hub: an image encoder": _spec(
        "image_encoder", {"use": "clip-vit", "options": {"checkpoint": "evil/repo", "width": 16}}
    ),
    "hub: a tagger": _spec("refiner.tagger", {"use": "ram-plus", "options": {"checkpoint": "evil/repo"}}),
    "hub: a detector's tokenizer": _spec(
        "refiner.detector", {"use": "grounding-dino", "options": {"checkpoint": "evil/repo", "tokenizer": "evil/words"}}
    ),
    "checkpoint: auto_map in its configuration": _checkpoint(
        _edit("config.json", lambda data: {**data, "auto_map": _AUTO_MAP})
    ),
    "checkpoint: auto_map in its tokenizer": _checkpoint(
        _edit("tokenizer_config.json", lambda data: {**data, "auto_map": _AUTO_MAP})
    ),
    "checkpoint: an adapter": _checkpoint(
        _put("adapter_config.json", json.dumps({"base_model_name_or_path": "evil/base"}))
    ),
    "checkpoint: a pickle": _checkpoint(_bare_pickle("pytorch_model.bin")),
    "checkpoint: NaN": _checkpoint(_fill(float("nan"), "")),
    "checkpoint: floats relabeled as int32": _checkpoint(_relabel("I32", "")),
    "checkpoint: 10^6 layers": _sizes("language-model/config.json", num_hidden_layers=1_000_000),
    "checkpoint: a width of 10^9": _sizes("language-model/config.json", hidden_size=_BIG),
    "checkpoint: 10^12 words": _sizes("language-model/config.json", vocab_size=10**12),
    "frozen.json: no JSON": _put("frozen.json", "]"),
    "frozen.json: of another part": _edit(
        "frozen.json", lambda data: {"parts": {path: {"sha256": "0"} for path in data["parts"]}}
    ),
}


def make_bases(place: Path) -> tuple[Path, Path]:
    """Two sound folders: of a whole model, and of the trained parts of the same with the language model's checkpoint
    inside.
    """
    import torch

    from lyrics.core.loading import build_model
    from tests.core.small import small

    torch.manual_seed(0)
    model = build_model(small(objectives={"itc": "itc"}), weights="random")
    model.save_pretrained(place / "whole")
    # Frozen parts are read from somewhere: the language model from the folder, the experts from what ships.
    language_model = place / "trained" / "language-model"
    frozen = build_model(small(language_model__options__adaptation="frozen"), weights="random").language_model
    frozen.model.save_pretrained(language_model)
    frozen.tokenizer.save_pretrained(language_model)
    shipped = {f"refiner.{name}": f"tiny-{name}" for name in ("tagger", "detector", "segmenter")}
    own = {"query_transformer.options.tokenizer": None, "language_model.options.checkpoint": str(language_model)}
    spec = small(objectives={"itc": "itc"}).with_overrides({"image_encoder": "tiny-vit", **shipped, **own})
    build_model(spec).save_pretrained(place / "trained", trainable_only=True)
    for folder in (place / "whole", place / "trained"):
        for name in ("evil.py", "evil_package/__init__.py", "evil_package/inner.py", "tokenization_evil.py"):
            _put(name, _PAYLOAD)(folder)
    return place / "whole", place / "trained"


class Watch:
    """Counts what an audit hook sees: imports from a folder, sockets; and prompts."""

    def __init__(self) -> None:
        self.folder = ""
        self.sockets: list[str] = []
        self.opened: list[str] = []
        self.prompts: list[str] = []
        builtins.input = self._prompt
        sys.addaudithook(self._hook)

    def start(self, folder: Path) -> None:
        self.folder = str(folder)
        self.sockets, self.opened, self.prompts = [], [], []

    def _prompt(self, text: str = "") -> str:
        self.prompts.append(text)
        return "y"

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            self.sockets.append(event)
        elif event == "open" and self.folder and self._is_code_of_the_folder(str(arguments[0])):
            self.opened.append(str(arguments[0]))

    def _is_code_of_the_folder(self, name: str) -> bool:
        return name.endswith((".py", ".pyc")) and os.path.abspath(name).startswith(self.folder)


def load(folder: Path, watch: Watch) -> dict[str, Any]:
    """Load a folder from inside of it and ask it something; what happened."""
    from lyrics.core.errors import LyricsError
    from lyrics.core.model import LyricsModel

    watch.start(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error, kind = "", ""
    os.chdir(folder)
    try:
        LyricsModel.from_pretrained(folder)
    except LyricsError as refusal:
        error, kind = str(refusal), "refused"
    except BaseException as other:
        error, kind = f"{type(other).__name__}: {other}", "raised"
    os.chdir("/")
    own = [
        name
        for name, module in list(sys.modules.items())
        if str(getattr(module, "__file__", "")).startswith(str(folder))
    ]
    return {
        "kind": kind,
        "error": error,
        "imports": own + watch.opened,
        "prompts": watch.prompts,
        "sockets": watch.sockets,
        "ran": (folder / "ran").exists(),
        "grown_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def _own_checkpoint(folder: Path) -> None:
    """The checkpoint of a copied folder is the one inside of it."""
    _spec("language_model.options.checkpoint", str(folder / "language-model"))(folder)


def _report(name: str, outcome: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"name": name, **outcome}) + "\n")
    sys.stdout.flush()


def main(place: Path) -> None:
    warnings.simplefilter("ignore")
    whole, trained = make_bases(place)
    watch = Watch()
    sys.path.insert(0, "")
    for name, source in (("sound: whole", whole), ("sound: trained parts", trained)):
        folder = place / name.replace(": ", "-").replace(" ", "-")
        shutil.copytree(source, folder)
        if source is trained:
            _own_checkpoint(folder)
        _report(name, load(folder, watch))
    cases = [(name, whole, mutate) for name, mutate in WHOLE.items()]
    cases += [(name, trained, mutate) for name, mutate in TRAINED.items()]
    for number, (name, source, mutate) in enumerate(cases):
        folder = place / f"case-{number}"
        shutil.copytree(source, folder)
        if source is trained:
            _own_checkpoint(folder)
        mutate(folder)
        _report(name, load(folder, watch))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
