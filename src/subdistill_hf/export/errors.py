"""What may go wrong when a student is exported."""

from subdistill_hf.errors import SubDistillError


class ExportError(SubDistillError):
    """A student that cannot be exported as it was asked for."""
