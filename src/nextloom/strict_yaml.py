"""YAML of recipes, read strictly: a slip or a trap in a file is refused with its line instead of being half read.

PyYAML takes the last of two equal keys without a word, and an alias that names a list of aliases grows without bound
when it is walked. Here equal keys are refused, and size, depth and what aliases unfold to are bounded.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_BYTES = 2**20
"""Largest recipe file."""
MAX_DEPTH = 32
"""Deepest nesting of mappings and lists."""
MAX_NODES = 100_000
"""Most values in a file, with every alias counted as often as it is used."""


class _Loader(yaml.SafeLoader):
    """`SafeLoader` that counts nodes and refuses equal keys."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        first = self.peek_event()
        if self._depth == MAX_DEPTH:
            _refuse(first, f"nested deeper than {MAX_DEPTH} levels")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(first, yaml.AliasEvent):
            self._sizes[id(node)] = self._size(node)
        elif id(node) not in self._sizes:
            _refuse(first, f"the alias *{first.anchor} stands inside of what it names")
        return node

    def _size(self, node: Any) -> int:
        """Values below `node` once its aliases are unfolded; its children were composed before it."""
        inner: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            self._refuse_twice(node)
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        size = 1 + sum(self._sizes[id(part)] for part in inner)
        if size > MAX_NODES:
            _refuse(node, f"more than {MAX_NODES:,} values, aliases unfolded")
        return size

    @staticmethod
    def _refuse_twice(node: yaml.MappingNode) -> None:
        seen: dict[tuple[str, str], Any] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                _refuse(key, "a key is a word or a number, not a list or a mapping")
            name = (key.tag, key.value)
            if name in seen:
                line = seen[name].start_mark.line + 1
                _refuse(key, f"the key {key.value!r} stands here twice, first on line {line}")
            seen[name] = key


def _refuse(at: Any, problem: str) -> None:
    raise yaml.constructor.ConstructorError(None, None, problem, at.start_mark)


def parse(text: str) -> Any:
    """Plain data from YAML text.

    Raises:
        yaml.YAMLError: not YAML, equal keys, or beyond a bound; says where.
        ValueError: a value that cannot be, such as the date 2024-13-45.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"{len(text):,} characters, the limit is {MAX_BYTES:,}")
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
