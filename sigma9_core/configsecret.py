"""What no message about a configuration file may show: its secrets, also those that stand in a wrong place."""

from __future__ import annotations

import re
from typing import Final

from sigma9_core.configschema import SECRET_NAME, Shape
from sigma9_core.errors import Fault
from sigma9_core.explain import did_you_mean, quoted
from sigma9_core.yamltext import Scalar, Tree

MASK: Final = "********"
_SHORT: Final = 6
"""A secret of fewer characters is looked for in quotes alone: it may be part of any word."""
_TOLD_KEY: Final = re.compile(rf"({SECRET_NAME.pattern}[\w-]*)[^\w-].*", re.IGNORECASE | re.DOTALL)
"""A key that goes on after a secret's name, as of `{token=abc}`: the rest may be the secret."""


class Secrets:
    """The secret texts of one configuration, as they were written."""

    def __init__(self) -> None:
        self._texts: set[str] = set()

    def note(self, tree: Tree, shape: Shape | None, *, secret: bool = False) -> None:
        """Remember what stands where a secret belongs, or where one was put by mistake; `shape` is the tree's."""
        if isinstance(tree, Scalar):
            if secret and tree.text:
                self._texts.add(tree.text)
        elif isinstance(tree, list):
            for index, below in enumerate(tree):
                self.note(below, shape.child(index) if shape else None, secret=secret)
        else:
            for key, below in tree.items():
                child = shape.child(key) if shape else None
                named = child.secret if child is not None else bool(SECRET_NAME.search(key))
                self.note(below, child, secret=secret or named or _may_be_secret(below, child))
                if child is None and shape is not None and _is_bare_secret(key, below, shape):
                    self._texts.add(key)

    def conceal(self, fault: Fault) -> Fault:
        """Mask every secret in a fault's path and sentence."""
        path = ".".join(
            MASK if part in self._texts else _TOLD_KEY.sub(r"\1...", part) for part in fault.path.split(".")
        )
        message = fault.message
        for secret in sorted(self._texts, key=len, reverse=True):
            if len(secret) >= _SHORT:
                message, path = message.replace(secret, MASK), path.replace(secret, MASK)
            message = message.replace(quoted(secret), f"'{MASK}'")
        return Fault(fault.where, path, message)


def _may_be_secret(tree: Tree, shape: Shape | None) -> bool:
    """Tell whether text stands where keys and values with a secret among them belong, as of `auth: abc`."""
    if shape is None or not isinstance(tree, Scalar) or not isinstance(tree.value(), str):
        return False
    return shape.kind == "mapping" or _has_secret(shape)


def _is_bare_secret(key: str, tree: Tree, shape: Shape) -> bool:
    """Tell whether an unknown key without a value may be a secret itself, as of `auth: {abc}`."""
    empty = isinstance(tree, Scalar) and tree.value() is None
    return empty and _has_secret(shape) and did_you_mean(key, shape.keys()) is None


def _has_secret(shape: Shape) -> bool:
    return shape.kind == "section" and any(child.secret for child in map(shape.child, shape.keys()) if child)
