"""What may go wrong when a student is explained."""

from subdistill_hf.errors import SubDistillError


class ExplainError(SubDistillError):
    """A student, a teacher or images that cannot be explained as it was asked for."""
