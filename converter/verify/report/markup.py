"""Text from anywhere (names, versions, errors) as HTML and Markdown show it: nothing in it is markup."""

import html
import re

from jax_edm2.messages import one_line, printable

_MARKUP = re.compile(r"[^\w\s.,;:%()/+-]|(?<=:)/(?=/)|(?<![^\W_])_|_(?![^\W_])")  # underscores inside words are none


def escape(text: str) -> str:
    """For HTML, as an element's text and in quoted attributes."""
    return html.escape(printable(str(text)))


def markdown(text: str) -> str:
    """For a line of Markdown, or a cell of a table in it."""
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", one_line(str(text)))


def markdown_code(text: str) -> str:
    """A name in the type of code."""
    shown = markdown(text)
    return f"`{shown}`" if shown == text else f"<code>{shown}</code>"  # between backticks entities mean themselves
