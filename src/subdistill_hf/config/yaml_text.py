"""YAML as people mean it: names as they are written, whole numbers with ten digits, and no key twice."""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

INT: Final = "tag:yaml.org,2002:int"
MERGE: Final = "tag:yaml.org,2002:merge"
TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"
WHOLE_NUMBER: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")


class RepeatedKeyError(yaml.YAMLError):
    """A key that is given twice in one mapping, of which a loader would keep the last."""


class _ValueLoader(yaml.SafeLoader):
    """Values with their types; keys are texts, 010 is no number of eight digits, and a date is a text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are as they are written.

        Raises:
            RepeatedKeyError: naming the key and its line.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "expected a text as key", key.start_mark)
            if key.value in seen:
                raise RepeatedKeyError(f"line {key.start_mark.line + 1}: {key.value!r} is given twice")
            seen.add(key.value)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


class _TextLoader(_ValueLoader):
    """All values as the texts that are written."""


_ValueLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (INT, TIMESTAMP)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_ValueLoader.add_implicit_resolver(INT, WHOLE_NUMBER, list("-+0123456789"))
_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == MERGE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_values(text: str) -> Any:
    """Read YAML, with numbers and truth values.

    Raises:
        yaml.YAMLError: for what is no YAML, and for a repeated key.
    """
    return yaml.load(text, _ValueLoader)  # a safe loader


def read_texts(text: str) -> Any:
    """Read YAML, every value as the text that is written: `yes` and `010` are names.

    Raises:
        yaml.YAMLError: as `read_values`.
    """
    return yaml.load(text, _TextLoader)  # a safe loader
