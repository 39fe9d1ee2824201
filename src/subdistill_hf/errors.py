"""The errors of this package: one clear message, no traceback needed."""


class SubDistillError(ValueError):
    """Something that the user can put right; the message says what was expected, what was found, and how."""


class DistillationError(SubDistillError):
    """Models, data or a checkpoint that do not fit together."""


class NonFiniteLossError(SubDistillError):
    """A part of the loss became NaN or infinite."""


class DataError(SubDistillError):
    """A dataset that cannot be used for the subtask."""


class PushError(SubDistillError):
    """A student that did not get to the Hub; its folder is as it was."""


class SubspaceError(SubDistillError):
    """Moments from which the asked subspace cannot be estimated."""
