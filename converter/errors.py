"""The converter's one error type."""


class ConverterError(Exception):
    """An input that is missing, broken or refused; the message is one line for the user."""
