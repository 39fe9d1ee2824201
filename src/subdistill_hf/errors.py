"""The errors of this package: one clear message, no traceback needed."""

from collections.abc import Iterator

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it, and of a training that a signal stopped."""


class SubDistillError(ValueError):
    """Something that the user can put right; the message says what was expected, what was found, and how."""


class MissingExtraError(SubDistillError):
    """A use that needs packages which are not installed.

    Args:
        use: what needs them, the subject of the message.
        extra: of this package, which installs them.
    """

    def __init__(self, use: str, extra: str) -> None:
        super().__init__(f"{use} needs packages that are not installed: {install_command(extra)}")
        self.use, self.extra = use, extra

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """How it comes from another process: by default an exception is made again of its message alone."""
        return type(self), (self.use, self.extra)


def install_command(extra: str) -> str:
    """The command that installs an extra of this package."""
    return f"pip install 'subdistill-hf[{extra}]'"


class DistillationError(SubDistillError):
    """Models, data or a checkpoint that do not fit together."""


class DivergedError(SubDistillError):
    """A training whose loss has grown far beyond where it began."""


class NonFiniteLossError(DivergedError):
    """A part of the loss became NaN or infinite."""


class InterruptedTrainingError(SubDistillError):
    """A training that a signal stopped once its checkpoint was written: there is no student yet."""


class DataError(SubDistillError):
    """A dataset that cannot be used for the subtask."""


class PushError(SubDistillError):
    """A student that did not get to the Hub; its folder is as it was."""


class SubspaceError(SubDistillError):
    """Moments from which the asked subspace cannot be estimated."""


def with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and one after the other what it was raised from or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def comes_of_an_interruption(error: BaseException) -> bool:
    """Whether an error is what this package, or another library, made of Ctrl-C or SIGTERM."""
    return any(isinstance(each, KeyboardInterrupt | InterruptedTrainingError) for each in with_causes(error))
