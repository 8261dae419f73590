"""What every component keeps, whatever its kind, and the guard that no check of a contract is lost."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError
from lyrics.core.registry.plugin_process import python
from lyrics.core.registry.registry import HEAVY_MODULES, Entry, Registry, default_registry
from lyrics.core.resolve import Part, declared_dim
from lyrics.core.spec import validate

_SUITE = "lyrics.testing"


class Contract:
    """Checks that are not lost: one that is set to None or overridden fails, or is no class at all."""

    def test_no_check_is_missing(self) -> None:
        """Troubleshooting: a check was set to None or overridden.

        Mark an override `@pytest.mark.xfail(reason=...)` instead.
        """
        contract = _contract_class(type(self))
        for name in checks_of(contract):
            found = getattr(type(self), name, None)
            kept = found is getattr(contract, name) or _is_xfail(found)
            assert kept, f"the check {name} of {contract.__name__} was removed or overridden"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith(_SUITE):
            return
        contract = _contract_class(cls)
        for name in checks_of(contract):
            found = getattr(cls, name)
            if found is not getattr(contract, name) and not _is_xfail(found):
                raise TypeError(
                    f"{cls.__name__} overrides the check {name} of {contract.__name__}; a check may only be overridden "
                    "by a test marked @pytest.mark.xfail(reason=...)"
                )


class ComponentContract(Contract):
    """What every component keeps, whatever its kind.

    Attributes to set: ``component`` (its name, or ``distribution/name``); ``options``, where the record's
    ``test_options`` do not serve; ``registry``, where the component is not installed.
    """

    kind: ClassVar[str] = ""
    component: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any] | None] = None
    registry: ClassVar[Registry | None] = None
    #: Options that change nothing but must be there for a build to make sense, per kind.
    context: ClassVar[Mapping[str, Any]] = {}

    # --- what checks stand on ---

    @property
    def entry(self) -> Entry:
        return (self.registry or default_registry()).component(self.kind, self.component)

    @property
    def part(self) -> Part:
        record = self.entry.component
        given = record.test_options if self.options is None else self.options
        options = validate(dict(given), record.options, where=f"{self.kind} options")
        return Part(self.kind, self.entry, options, self.registry)

    def build(self, weights: str = "random", seed: int = 0) -> Any:
        """Return the component under its test options, in evaluation mode, without a network."""
        import torch

        from lyrics.core.build import build_part, check_requirements

        check_requirements(self.part)
        torch.manual_seed(seed)
        context = BuildContext(weights, **self.context)  # type: ignore[arg-type]
        with no_network(), torch.device("meta" if weights == "meta" else "cpu"):
            built = build_part(self.part, context)
        return built.eval() if isinstance(built, torch.nn.Module) else built

    # --- checks ---

    def test_manifest_imports_nothing_heavy(self) -> None:
        """Troubleshooting: the module that the entry point names may hold records and options only.

        Move `import torch` and everything that needs it into the module that `build` names.
        """
        manifest_is_light(self.entry.source.module or self.entry.component.options.__module__)

    def test_options_round_trip_through_json(self) -> None:
        """Troubleshooting: option types must be plain data: numbers, strings, lists, mappings, or nested Options."""
        options = self.part.options
        again = type(options).model_validate(json.loads(json.dumps(options.model_dump(mode="json"))))
        assert again == options, f"options change on their way through JSON: {options} became {again}"

    def test_unknown_option_is_refused(self) -> None:
        """Troubleshooting: keep `extra='forbid'`, which lyrics.Options sets: a misspelled option must not pass
        silently.
        """
        try:
            validate({"no-such-option": 1}, self.entry.component.options)
        except SpecError:
            return
        raise AssertionError("an unknown option was accepted")

    def test_every_option_is_described(self) -> None:
        """Troubleshooting: give each field a `Field(description=...)`; `lyrics show` prints it."""
        bare = [name for name, field in self.entry.component.options.model_fields.items() if not field.description]
        assert not bare, f"options without a description: {', '.join(bare)}"

    def test_builds_offline(self) -> None:
        """Troubleshooting: with weights 'random' nothing may be downloaded; initialize from the options' numbers."""
        self.build()


def checks_of(contract: type[Contract]) -> list[str]:
    """Return names of the checks that a class holds, inherited ones included."""
    return sorted(name for name in dir(contract) if name.startswith("test_"))


def _contract_class(cls: type) -> type[Contract]:
    return next(base for base in cls.__mro__ if base.__module__.startswith(_SUITE))


def _is_xfail(function: Any) -> bool:
    marks = getattr(function, "pytestmark", [])
    return any(mark.name == "xfail" and mark.kwargs.get("reason") for mark in marks)


class ModuleContract(ComponentContract):
    """Components that are ``torch.nn.Module``s."""

    def test_is_a_module(self) -> None:
        import torch

        assert isinstance(self.build(), torch.nn.Module)

    def test_builds_on_the_meta_device(self) -> None:
        """Troubleshooting: create tensors without naming a device, so that `torch.device("meta")` applies to them."""
        built = self.build("meta")
        placed = [name for name, parameter in built.named_parameters() if not parameter.is_meta]
        assert not placed, f"with weights='meta' these parameters took memory: {', '.join(placed[:3])}"

    def test_state_dict_comes_back(self) -> None:
        """Troubleshooting: whatever the results depend on belongs into parameters or persistent buffers."""
        import torch

        first, second = self.build(), self.build(seed=1)
        second.load_state_dict(first.state_dict(), strict=True)
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[name]), f"{name} did not survive load_state_dict"

    def test_declared_width_is_the_real_one(self) -> None:
        """Troubleshooting: `feature_dim` of the options (field or property) and of the module must agree."""
        declared = declared_dim(self.part)
        if declared is not None:
            assert declared == self.build().feature_dim


@functools.cache
def manifest_is_light(module: str) -> None:
    blocked = ", ".join(repr(name) for name in HEAVY_MODULES)
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in ({blocked}):\n"
        "            raise ImportError(f'the manifest imports {name}')\n"
        "sys.meta_path.insert(0, Block())\n"
        f"import {module}\n"
    )
    done = subprocess.run(python(code), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{module}: {done.stderr.strip().splitlines()[-1]}"


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    """Any connection attempt fails, loudly, for as long as the block runs."""

    def refuse(*_: Any) -> None:
        raise ConnectionError("a component must not use the network unless it loads pretrained weights")

    saved = socket.socket.connect
    socket.socket.connect = refuse  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        socket.socket.connect = saved  # type: ignore[method-assign]
