"""The base of this package's errors: one clear message, no traceback needed."""


class SubDistillError(ValueError):
    """Something that the user can put right; the message says what was expected, what was found, and how."""
