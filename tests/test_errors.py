"""Errors keep what they say on the way from one process to another."""

import importlib
import inspect
import pickle
import pkgutil

import pytest

import subdistill_hf
from subdistill_hf.errors import SubDistillError


def every_error():
    for module in pkgutil.walk_packages(subdistill_hf.__path__, "subdistill_hf."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, rest = set(), [SubDistillError]
    while rest:
        rest += (own := rest.pop()).__subclasses__()
        found.add(own)
    return sorted((one for one in found if one.__module__.startswith("subdistill_hf")), key=lambda one: one.__name__)


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_an_error_comes_whole_from_a_process(kind):
    # one that cannot be made again breaks the pool of processes, and nobody reads what it said
    texts = {"missing": ("a", "b")}
    own = {} if kind.__init__ is SubDistillError.__init__ else inspect.signature(kind).parameters
    error = kind(*(texts.get(name, f"the {name}") for name in own or ["message"]))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), vars(again)) == (str(error), vars(error))
