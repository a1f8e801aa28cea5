"""Knowing every live instance of a class that keeps no list of them itself.

A walk over all objects finds them, but took 48 ms among a million. So that is done once, and from
then on the class notes each instance at its birth, as it passes ``__new__``: copies and unpickled
ones too, and those of subclasses that never call ``super().__init__()``. Notes are weak references.
"""

import gc
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class Births(Generic[T]):
    """Every live instance of ``kind``, a class without a ``__new__`` of its own, or of a subclass.

    ``told`` is called at each birth, when the instance is still empty. What ``gc.freeze()`` hid
    before the first ``attend()`` cannot be found.
    """

    def __init__(self, kind: type[T], *, told: Callable[[], None] | None = None) -> None:
        self._kind = kind
        self._told = told
        # By identity: a stranger's subclass may not be hashable.
        self._noted: WeakValueDictionary[int, T] = WeakValueDictionary()
        self._attending = False

    def attend(self) -> None:
        """Find those that live and note those to come; done once, for as long as Python runs."""
        if self._attending:
            return
        self._attending = True
        kind, note = self._kind, self._note

        def born(cls: type[T], *args: Any, **kwargs: Any) -> T:  # noqa: ANN401  # the class's own
            following: Callable[..., T] = super(kind, cls).__new__  # type: ignore[misc]
            plain = following is object.__new__  # which takes no arguments where there is another
            return note(following(cls) if plain else following(cls, *args, **kwargs))

        born.__wrapped__ = kind.__init__  # type: ignore[attr-defined]  # inspect.signature's
        kind.__new__ = staticmethod(born)  # type: ignore[method-assign,assignment]
        for each in gc.get_objects():
            # type() and not isinstance(): the latter runs the code of lazy proxies.
            if issubclass(type(each), kind):
                self._noted[id(each)] = each

    def living(self) -> list[T]:
        """Those that live, among them those whose constructor failed while a traceback lives."""
        return [each for note in self._noted.valuerefs() if (each := note()) is not None]

    def _note(self, instance: T) -> T:
        self._noted[id(instance)] = instance
        if self._told is not None:
            self._told()
        return instance
