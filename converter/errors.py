"""The converter's error type, and what it is made of."""


class ConverterError(Exception):
    """An input that is missing, broken or refused; the message is one line for the user."""


class UsageError(ConverterError):
    """A request that contradicts itself, or lacks something; it is wrong before any input is read."""


class SampleError(ConverterError):
    """Sampling that cannot be done as asked."""


class SnapshotError(ConverterError):
    """A file that is not a sound EDM2 snapshot. The message begins with the file's path."""


class ProcessFailed(Exception):  # noqa: N818
    """A process of ours ended with an exit code that is to be passed on, and has said why on standard error."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code
