"""What the tests of the commands run on."""

import pytest

from command_line import write_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A teacher of 100 classes, and images: three good classes and four with something wrong."""
    return write_inputs(tmp_path_factory.mktemp("cli"))
