"""Products that are made once, and again only where something that they were made from has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Inputs = TypeVar("Inputs")
Product = TypeVar("Product")


@dataclass(frozen=True)
class Made(Generic[Inputs, Product]):
    """A product, and the inputs that it was made from."""

    inputs: Inputs
    product: Product


def up_to_date(
    made: Made[Inputs, Product] | None, inputs: Inputs, make: Callable[[], Product]
) -> Made[Inputs, Product]:
    """The product that there is, where it was made from equal inputs, or else a new one.

    Args:
        made: what there is, if there is anything.
        inputs: what the product follows from now; compared by `==`.
        make: makes the product.
    """
    return made if made is not None and made.inputs == inputs else Made(inputs, make())


@dataclass(frozen=True, eq=False)
class Same:
    """An object that equals itself alone, whatever its own `==` compares: a dataset's may look at every image."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
