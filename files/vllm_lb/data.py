# SPDX-License-Identifier: Apache-2.0
"""Immutable records: dataclasses that share one comparison and one repr().

dataclasses.dataclass() compiles these methods for each class whenever a program starts. The two halves of a tick start
every few seconds and have some thirty classes. Compiling would be a tenth of their processor time (benchmarks/tick.py).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def data(*, kw_only: bool = False, slots: bool = True) -> Callable[[type[T]], type[T]]:
    """Make a class an immutable dataclass, as dataclass(frozen=True) does."""

    def decorate(cls: type[T]) -> type[T]:
        made: Any = dataclasses.dataclass(frozen=True, slots=slots, kw_only=kw_only, eq=False, repr=False)(cls)
        names = tuple(each.name for each in dataclasses.fields(made))

        def values(record: Any) -> tuple[Any, ...]:
            return tuple(getattr(record, name) for name in names)

        def is_equal(record: Any, other: object) -> bool:
            return values(record) == values(other) if type(other) is made else NotImplemented

        def shown(record: Any) -> str:
            pairs = (f"{name}={value!r}" for name, value in zip(names, values(record), strict=True))
            return f"{made.__qualname__}({', '.join(pairs)})"

        made.__eq__, made.__hash__, made.__repr__ = is_equal, lambda record: hash(values(record)), shown
        return made  # type: ignore[no-any-return]

    return decorate
