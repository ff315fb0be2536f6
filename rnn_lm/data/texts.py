"""UTF-8 text from files, folders and globs."""

import codecs
import glob
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from rnn_lm.errors import NewerFormat, Unreadable, UserError
from rnn_lm.files import path_of, read_json

Pattern = tuple[str, ...]  # the parts of a glob, such as ("**", "*.txt")
# A file of a run, of a sweep and of a comparison, and what it has.
OURS = {
    "vocabulary.json": {"kind", "normalize", "tokens"},
    "results.json": {"members", "settings"},
    "compare.json": {"models", "ngrams"},
}


def read_files(*paths: str) -> str:
    """The text of UTF-8 files, folders (all files in them) or globs, joined by newlines.

    The files of a path come in the order of their paths. Links are followed, and each file is read once. Folders and
    globs skip empty files, names that start with a dot, and the folders of runs, sweeps and comparisons.

    Raises:
      UserError: there is no such text, or a part of it cannot be read.
    """
    return "\n".join(decoded(content, str(file)) for path in paths for file, content in _files(path))


def lines_of(text: str) -> list[str]:
    r"""The lines of a text. They end at `\n` or `\r\n` only."""
    return re.split("\r?\n", text)


def _files(path: str) -> Iterator[tuple[Path, bytes]]:
    """The files of a path, with their contents."""
    if not path:
        raise UserError("the path of the text is empty; give a UTF-8 file, a folder or a glob")
    root, pattern = _split(path_of(path))
    if not pattern and os.path.lexists(root) and not os.path.isdir(root):
        yield root, _content(root, or_pipe=True)
        return
    if is_ours(root):
        raise UserError(f"{root} is the folder of a run, a sweep or a comparison, which is never read as text")
    found: dict[str, Path] = {}  # by real path: a file with several names has the first of them
    for file in _matches(root, {pattern or ("**",)}, set()):
        found.setdefault(os.path.realpath(file), file)
    files = [(file, content) for file in found.values() if (content := _content(file))]
    if not files:
        what = "all files in it are empty" if found else "no such file, folder or glob, or no file in it"
        raise UserError(f"{path}: {what}; give UTF-8 text")
    yield from files


def _split(path: Path) -> tuple[Path, Pattern]:
    """A path and the glob after it. What exists by that very name is no glob, such as a folder named `br[1]`."""
    root = Path(path.anchor)
    parts = path.parts[bool(path.anchor) :]
    for i, part in enumerate(parts):
        if re.search(r"[*?[]", part) and not os.path.lexists(root / part):
            return root, parts[i:]
        root /= part
    return root, ()


def _matches(folder: Path, patterns: set[Pattern], searched: set[tuple]) -> Iterator[Path]:
    """The files in a folder that match one of several globs, in the order of their paths.

    `searched` has the folders so far, since links may lead back.
    """
    here = os.path.realpath(folder), frozenset(patterns)
    if not os.path.isdir(folder) or here in searched or is_ours(folder):
        return
    searched.add(here)
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise _unreadable(folder, error) from error
    for name in sorted(entry.name + "/" * os.path.isdir(entry.path) for entry in entries):
        path, left = folder / name, _after(patterns, name.rstrip("/"))
        if not left:
            continue
        if name.endswith("/"):
            yield from _matches(path, left, searched)
        elif () in left or not os.path.exists(path):  # a broken link may have been a folder
            yield path


def _after(patterns: Iterable[Pattern], name: str) -> set[Pattern]:
    """What is left of globs after one part of a path; () where one is fulfilled. `**` is any number of parts."""
    left: set[Pattern] = set()
    for pattern in patterns:
        while pattern[:1] == ("**",):
            left |= {pattern, pattern[1:]}
            pattern = pattern[1:]
        if pattern and fnmatchcase(name, pattern[0]):
            left.add(pattern[1:])
    return left


def is_ours(folder: Path) -> bool:
    """Whether it is the folder of a run, a sweep or a comparison."""
    for name, keys in OURS.items():
        try:
            if os.path.isfile(folder / name) and keys <= read_json(folder / name).keys():
                return True
        except NewerFormat:
            if name == "vocabulary.json":
                return True
        except Unreadable:
            pass
    # A sweep or a comparison that has just begun has counted n-grams, in a file named by a hash.
    return bool(glob.glob(os.path.join(glob.escape(str(folder)), "ngrams", 16 * "[0-9a-f]" + "-*.npz")))


def _content(file: Path, *, or_pipe: bool = False) -> bytes:
    """The content of a file, or of a pipe that is named by itself; reading one in a folder may wait for ever."""
    try:
        if not os.path.exists(file):
            raise UserError(f"{file} is a broken link, so its text is missing; fix or delete the link")
        if not (file.is_file() or (or_pipe and file.is_fifo())):
            raise UserError(f"{file} is no file but a device, a socket or a pipe; give UTF-8 text")
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read: {error.strerror}; check its permissions, or give another path")


def check_lasting(path: str) -> None:
    """Raises UserError if a path can be read only once, as a pipe: verbs read the text of a run again."""
    if os.path.exists(path_of(path)) and path_of(path).is_fifo():
        raise UserError(f"{path} is a pipe, which can be read only once; save the text in a file first")


def decoded(content: bytes, name: str) -> str:
    """Decodes UTF-8 without changing line ends; drops a byte order mark.

    Raises:
      UserError: it is no UTF-8; the message says where, and how to convert it.
    """
    if not content:
        raise UserError(f"{name}: the file is empty")
    if wide := _utf16_or_32(content):
        raise UserError(f"{name}: the text is {wide.upper()}; {_converted(name, wide)}")
    if b"\0" in content:
        raise UserError(f"{name}: a binary file (byte {content.index(0)} is NUL); give UTF-8 text")
    mark = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
    try:
        return content[mark:].decode()
    except UnicodeDecodeError as error:
        place = mark + error.start
        where = f"{name}: not UTF-8 (byte {place} is 0x{content[place]:02x}"
        if error.reason == "unexpected end of data":
            raise UserError(
                f"{where}, where the file ends inside a character): the file is truncated; {_cleaned(name)}"
            ) from error
        raise UserError(f"{where}); {_repair(content, mark, name)}") from error


def _utf16_or_32(content: bytes) -> str:
    """The name of a wide encoding, from its byte order mark or from where its zero bytes are; "" if it is none."""
    marks = {"utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)}
    for encoding, starts in marks.items():
        if content.startswith(starts):
            return encoding
    zeros = [content[i:1000:2].count(0) for i in (0, 1)]  # of even and odd bytes
    if len(content) % 2 == 0 and min(zeros) == 0 and max(zeros) > 0.4 * len(content[:1000:2]):
        return "utf-16le" if zeros[1] else "utf-16be"
    return ""


def _repair(content: bytes, mark: int, name: str) -> str:
    """How to make UTF-8 of a text with a wrong byte: drop it, or convert a whole text of another encoding."""
    valid = content[mark:].decode(errors="ignore")
    several = len(valid) - sum(map(str.isascii, valid))  # characters of several bytes
    wrong = len(content) - mark - len(valid.encode())
    if mark or several >= wrong or re.search(rb"\xed[\xa0-\xbf]", content):
        return f"the rest of the file is UTF-8; {_cleaned(name)}"
    try:
        content.decode("cp1252")
    except UnicodeDecodeError:
        return "convert it from its encoding with iconv (iconv -l lists them)"
    return f"{_converted(name, 'cp1252')} (cp1252 is for Western European texts; iconv -l lists the others)"


def _converted(name: str, encoding: str) -> str:
    return f"convert it: iconv -f {encoding} -t utf-8 {shlex.quote(name)} > NEW"


def _cleaned(name: str) -> str:
    return f"fix that byte, or remove invalid bytes: iconv -c -f utf-8 -t utf-8 {shlex.quote(name)} > NEW"
