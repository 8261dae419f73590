"""Former names of public things: each works for one more release, and warns.

Arguments and attributes (``renamed``), names in a module (``moved_names``) and whole modules (``warn_former_name``)
differ only in where the name is looked up; fields of records and options stand in ``lyrics.core.renamed_fields``.
Imports no torch and no pydantic.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])
V = TypeVar("V")

#: The release in which the former names of this one are gone.
GONE_IN = "0.3"


class FormerSettingWarning(DeprecationWarning):
    """A setting, such as a key of a configuration or an option of a command, is given under its former name."""


def warn_former_name(
    former: str, name: str, category: type[DeprecationWarning] = DeprecationWarning, *, stacklevel: int = 2
) -> None:
    """Warn that ``former`` is now ``name``. ``stacklevel`` counts from the caller, as in ``warnings.warn``."""
    warnings.warn(f"{former} is now {name}; the former name goes in {GONE_IN}.", category, stacklevel=stacklevel + 1)


def both_names(former: str, name: str) -> str:
    """Return the message for a value that is given under both of its names."""
    return f"{former} is the former name of {name}; give {name} alone."


def current_names(
    given: Mapping[str, V],
    former_names: Mapping[str, str],
    *,
    where: str = "",
    error: Callable[[str], Exception] = ValueError,
    category: type[DeprecationWarning] = FormerSettingWarning,
    stacklevel: int = 2,
) -> dict[str, V]:
    """Return ``given`` with every former name replaced by the current one, in the same order, and warn of each.

    Args:
        given: values by name.
        former_names: former name -> current name.
        where: put before the names in messages, such as ``"query_transformer.options."``.
        error: makes the error for a value that is given under both of its names.
        category: of the warning.
        stacklevel: counted from the caller.
    """
    for former, name in former_names.items():
        if former in given:
            if name in given:
                raise error(both_names(where + former, where + name))
            warn_former_name(where + former, where + name, category, stacklevel=stacklevel + 1)
    return {former_names.get(key, key): value for key, value in given.items()}


def renamed(**former_names: str) -> Callable[[T], T]:
    """Decorate a function, or a class, so that it takes keyword arguments under former names, too, with a warning.

    ``former_names`` are former name -> current name. The attributes of a class can be read under them, too. An argument
    that is given under both of its names raises ``TypeError``.
    """

    def take(function: Callable[..., Any], called: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **given: Any) -> Any:
            if not given.keys().isdisjoint(former_names):
                given = current_names(
                    given, former_names, where=f"{called}: ", error=TypeError, category=DeprecationWarning
                )
            return function(*args, **given)

        return wrapper

    def decorate(thing: Any) -> Any:
        if not inspect.isclass(thing):
            return take(thing, thing.__qualname__)
        thing.__init__ = take(thing.__init__, thing.__name__)  # type: ignore[method-assign]
        for former, name in former_names.items():
            setattr(thing, former, _attribute(f"{thing.__name__}.{former}", f"{thing.__name__}.{name}", name))
        return thing

    return decorate


def _attribute(former: str, current: str, name: str) -> property:
    def read(self: Any) -> Any:
        warn_former_name(former, current)
        return getattr(self, name)

    return property(read, doc=f"The former name of ``{name}``.")


def moved_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module, which gives names that are now elsewhere, with a warning.

    Args:
        module: the ``__name__`` of the module.
        names: former name -> where it is now, as ``package.module.name``.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_former_name(f"{module}.{name}", names[name])
        home, _, current = names[name].rpartition(".")
        return getattr(importlib.import_module(home), current)

    return find
