"""Parameters that a docstring names together, each with its own type and default: griffe shows those of the first."""

from __future__ import annotations

from typing import Any

from griffe import Class, DocstringSectionKind, Extension, Function


class OwnTypes(Extension):
    """What mkdocstrings loads, mended."""

    def on_function(self, *, func: Function, **others: Any) -> None:
        """Mend a function."""
        _mend(func)

    def on_class_members(self, *, cls: Class, **others: Any) -> None:
        """Mend a class, whose docstring describes the parameters of its constructor."""
        if "__init__" in cls.members:  # that of a dataclass is not there yet
            _mend(cls)


def _mend(owner: Function | Class) -> None:
    if owner.docstring is None:
        return
    own = owner.parameters
    for section in owner.docstring.parsed:
        if section.kind is DocstringSectionKind.parameters:
            first = None
            for item in section.value:
                if item.name not in own:
                    continue
                if first is None or item.description != first[0]:
                    first = item.description, str(own[item.name].annotation)
                elif str(item.annotation) == first[1]:
                    item.annotation = own[item.name].annotation
                item.value = own[item.name].default
