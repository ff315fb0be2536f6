"""Text that is safe to show: a terminal obeys control characters, and some cannot be seen."""

import unicodedata

JOINERS = "\u200c\u200d"  # parts of Persian words and of emoji
_SHOWN = {chr(code): chr(0x2400 + code) for code in range(0x20)} | {"\x7f": "␡", "\n": "⏎", "\t": "⇥"}


def visible(text: str, keep: str = "") -> str:
    r"""The text with a symbol or an escape for each character that cannot be printed, except those in `keep`.

    >>> visible("a\x1b[31m\tb\u202e")
    'a␛[31m⇥b\\u202e'
    """

    def is_plain(c: str) -> bool:
        return c.isprintable() or c in keep or c in JOINERS or unicodedata.category(c) == "Zs"

    return "".join(c if is_plain(c) else _SHOWN.get(c) or ascii(c)[1:-1] for c in text)
