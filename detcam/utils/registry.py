"""Registries of named classes and functions: built in, registered by a decorator, or loaded from entry points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Generic, TypeVar

from detcam.utils.warnings import warn

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to classes or functions of one kind.

    Entry points are loaded when the registry is first read. One that fails to load is skipped with a warning. Case,
    ``-`` and ``_`` in a name are ignored, and ``++`` reads as ``plusplus``.

    Args:
        kind: the kind of the entries in the singular, for messages: ``"method"``.
        group: the group of entry points that adds to the registry, such as ``"detcam.methods"``.
        builtin: the entries of the package by name; a str ``"module:attribute"`` is imported on first use.
        check: function that is called with the name and the entry before it is added, and raises if the entry is not
            of the kind.

    Example:
        >>> from detcam.utils.registry import Registry
        >>> fills = Registry("fill", "my_package.fills", {"zero": lambda image: 0 * image})
        >>> fills.register("half", lambda image: image / 2)
        >>> fills.find("Half")(3.0)
        1.5
    """

    def __init__(
        self,
        kind: str,
        group: str,
        builtin: Mapping[str, T | str],
        *,
        check: Callable[[str, T], None] | None = None,
    ) -> None:
        self.kind = kind
        self.group = group
        self.check = check
        self._entries: dict[str, T | str] = dict(builtin)
        self._keys = {normalized(name): name for name in builtin}
        self._discovered = False

    def register(self, name: str, entry: T) -> None:
        """Add an entry.

        The same class or function may be registered again, as when a notebook cell runs twice.

        Raises:
            TypeError: the name is not a str.
            ValueError: the name is empty, or another entry has it.
        """
        if not isinstance(name, str):
            raise TypeError(f"expected the name of a {self.kind} as a str; got {type(name).__name__}")
        if self.check is not None:
            self.check(name, entry)
        key = normalized(name)
        if not key or any(character in name for character in ":,= \t\n"):
            raise ValueError(f"expected a name without spaces, ':', ',' and '=' for a {self.kind}; got {name!r}")
        if key in self._keys and not _is_redefinition(self[name], entry):
            raise ValueError(f"a {self.kind} named {self._keys[key]!r} exists already; choose another name")
        name = self._keys.setdefault(key, name)
        self._entries[name] = entry

    def unregister(self, name: str) -> None:
        """Remove an entry.

        Raises:
            KeyError: no entry has that name.
        """
        del self._entries[self._keys.pop(normalized(name))]

    def find(self, name: str) -> T:
        """Return the entry of a name.

        Raises:
            ValueError: no entry has that name; the message names the closest ones.
        """
        self._discover()
        key = normalized(name)
        if key in self._keys:
            return self[name]
        import difflib  # takes as long as the rest of this module

        close = difflib.get_close_matches(key, self._keys, n=3, cutoff=0.6)
        hint = " or ".join(self._keys[match] for match in close)
        known = f"did you mean {hint}?" if hint else f"expected one of {', '.join(self)}"
        raise ValueError(f"no {self.kind} is named {name!r}; {known}")

    def __getitem__(self, name: str) -> T:
        self._discover()
        name = self._keys[normalized(name)]
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = getattr(import_module(module), attribute)
            self._entries[name] = entry
        return entry

    def __contains__(self, name: object) -> bool:
        self._discover()
        return isinstance(name, str) and normalized(name) in self._keys

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(list(self._entries))

    def __len__(self) -> int:
        self._discover()
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(self)})"

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        from importlib.metadata import entry_points  # takes a third of `import detcam`

        for point in entry_points(group=self.group):
            try:
                if normalized(point.name) not in self._keys:  # the module may have used the decorator as well
                    entry = point.load()
                    if normalized(point.name) not in self._keys:
                        self.register(point.name, entry)
            except Exception as error:  # noqa: BLE001 - a broken plug-in must not stop the package
                message = f"{type(error).__name__}: {' '.join(str(error).split())}"
                warn(
                    f"the {self.kind} {point.name!r} of the entry point {point.value!r} is skipped: {message}",
                    UserWarning,
                )


def normalized(name: str) -> str:
    """Return a name in lower case without ``-`` and ``_``."""
    return name.strip().lower().replace("++", "plusplus").replace("-", "").replace("_", "")


def _is_redefinition(old: object, new: object) -> bool:
    """Return whether two entries come from one definition that was executed twice."""
    if old is new:
        return True
    origins = [(getattr(item, "__module__", None), getattr(item, "__qualname__", None)) for item in (old, new)]
    return origins[0] == origins[1] and origins[0][1] is not None
