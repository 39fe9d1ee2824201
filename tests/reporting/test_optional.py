"""A plot that cannot be drawn costs one line, and nothing else."""

import errno

import pytest

from subdistill_hf.reporting.optional import plot_is_optional


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no\nformula"), "note: a.png not drawn: ValueError: no formula\n"),
        (MemoryError(), "note: a.png not drawn: MemoryError\n"),
    ],
)
def test_an_error_is_reported_in_one_line(error, line, capsys):
    with plot_is_optional("a.png"):
        raise error
    assert capsys.readouterr().err == line


def test_an_interruption_is_an_error():
    with pytest.raises(KeyboardInterrupt), plot_is_optional("a.png"):
        raise KeyboardInterrupt


def test_a_full_disk_is_an_error():
    with pytest.raises(OSError, match="No space left"), plot_is_optional("a.png"):
        raise OSError(errno.ENOSPC, "No space left on device")
