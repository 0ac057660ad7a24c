"""The converter's one error type."""


class ConverterError(Exception):
    """An input that is missing, broken or refused; the message is one line (plus a list) for the user."""
