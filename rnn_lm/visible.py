"""Text that is safe to show: a terminal obeys control characters, and some cannot be seen."""

_SHOWN = {chr(code): chr(0x2400 + code) for code in range(0x20)} | {"\x7f": "␡", "\n": "⏎", "\t": "⇥"}


def visible(text: str, keep: str = "") -> str:
    r"""The text with a symbol or an escape for each character that cannot be printed, except those in `keep`.

    >>> visible("a\x1b[31m\tb\u202e")
    'a␛[31m⇥b\\u202e'
    """
    return "".join(c if c.isprintable() or c in keep else _SHOWN.get(c) or ascii(c)[1:-1] for c in text)
