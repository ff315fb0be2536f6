"""Texts as people have them: folders with links, globs, other encodings, folders of runs."""

import os
import socket
import threading
from pathlib import Path

import pytest

from rnn_lm.data.corpus import load_corpus
from rnn_lm.data.texts import decoded, lines_of, read_files
from rnn_lm.errors import UserError
from rnn_lm.files import write_json

CASES = Path(__file__).parent / "cases"


@pytest.fixture
def texts(tmp_path):
    """a.txt, sub/b.txt and sub/deep/c.md, each with its name."""
    folder = tmp_path / "texts"
    (folder / "sub" / "deep").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.md"):
        (folder / name).write_text(name)
    return folder


def case(name):
    return decoded((CASES / name).read_bytes(), name)


# Folders and globs


@pytest.mark.parametrize(
    "glob, expected",
    [
        ("", "a.txt\nsub/b.txt\nsub/deep/c.md"),
        ("*.txt", "a.txt"),
        ("*", "a.txt"),
        ("**", "a.txt\nsub/b.txt\nsub/deep/c.md"),
        ("**/*", "a.txt\nsub/b.txt\nsub/deep/c.md"),
        ("**/*.txt", "a.txt\nsub/b.txt"),
        ("*/*", "sub/b.txt"),
        ("s?b/[a-c].txt", "sub/b.txt"),
        ("sub/**/c.md", "sub/deep/c.md"),
        ("**/deep/**/*.md", "sub/deep/c.md"),
    ],
)
def test_globs(texts, glob, expected):
    assert read_files(f"{texts}/{glob}") == expected


def test_files_come_in_the_order_of_their_paths(tmp_path):
    for name in ("b", "a/z", "a.txt", "a-1", "B"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read_files(str(tmp_path)).split("\n") == ["B", "a-1", "a.txt", "a/z", "b"]


def test_links_are_followed_and_each_file_is_read_once(texts, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.txt").write_text("d.txt")
    (texts / "linked").symlink_to(tmp_path / "elsewhere")
    (texts / "again.txt").symlink_to(texts / "sub" / "b.txt")
    (texts / "sub" / "up").symlink_to(texts)  # a loop
    (texts / "sub" / "deep" / "up").symlink_to(texts / "sub")
    whole = "a.txt\nsub/b.txt\nd.txt\nsub/deep/c.md"
    assert read_files(str(texts)) == whole
    assert read_files(f"{texts}/**") == whole
    assert read_files(f"{texts}/**/*.txt") == "a.txt\nsub/b.txt\nd.txt"


@pytest.mark.parametrize("target", ["gone.txt", ".git/annex/objects/x/SHA256E-s5--abc.txt"])
def test_a_broken_link_is_an_error(texts, target):
    (texts / "sub" / "lost.txt").symlink_to(target)
    for path in (texts, f"{texts}/**/*.txt", texts / "sub" / "lost.txt"):
        with pytest.raises(UserError, match=r"sub/lost.txt is a broken link, so its text is missing"):
            read_files(str(path))
    assert read_files(f"{texts}/*.txt") == "a.txt"  # what the glob does not ask for is not looked at


def test_what_cannot_be_read_is_an_error(texts, monkeypatch):
    scan, read = os.scandir, Path.read_bytes

    def scandir(path):
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    def read_bytes(self):
        if self.name == "b.txt":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        with pytest.raises(UserError, match="sub/deep cannot be read: Permission denied"):
            read_files(str(texts))
        assert read_files(f"{texts}/sub/*.txt") == "sub/b.txt"
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(UserError, match="sub/b.txt cannot be read: Permission denied"):
        read_files(str(texts))


def test_links_that_lead_nowhere_have_their_names_and_hidden_ones_do_not_count(texts):
    (texts / ".loop").symlink_to(".loop")
    assert read_files(str(texts)) == "a.txt\nsub/b.txt\nsub/deep/c.md"
    (texts / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="texts/loop is a broken link"):
        read_files(str(texts))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_entered_is_named(texts):
    (texts / "sub").chmod(0)
    for path in (texts, texts / "sub"):
        with pytest.raises(UserError, match="texts/sub cannot be read: Permission denied"):
            read_files(str(path))
    (texts / "sub").chmod(0o700)


def test_a_pipe_in_a_folder_is_refused_and_not_waited_for(texts):
    os.mkfifo(texts / "pipe")
    with pytest.raises(UserError, match="texts/pipe is no file but a device, a socket or a pipe"):
        read_files(str(texts))


def test_a_name_with_brackets_is_a_name_where_it_exists(tmp_path, monkeypatch):
    folder = tmp_path / "br[1]"
    folder.mkdir()
    (folder / "a.txt").write_text("in br[1]")
    (tmp_path / "br1").mkdir()
    (tmp_path / "br1" / "a.txt").write_text("in br1")
    monkeypatch.chdir(folder)
    assert read_files("*.txt") == read_files(f"{folder}/*.txt") == read_files(str(folder)) == "in br[1]"
    (folder / "what?.txt").write_text("?")
    assert read_files("what?.txt") == "?"
    folder.rename(tmp_path / "moved")
    assert read_files(f"{folder}/*.txt") == "in br1"


def test_the_tilde_is_the_home_folder(texts, monkeypatch):
    monkeypatch.setenv("HOME", str(texts.parent))
    assert read_files("~/texts/a.txt") == read_files("~/texts/*.txt") == "a.txt"


@pytest.mark.parametrize("name", ["two  blanks.txt", "new\nline.txt", "ümlaut.txt", "-dash.txt", "quote'.txt"])
def test_odd_names(tmp_path, name):
    (tmp_path / name).write_text("text")
    assert read_files(str(tmp_path)) == read_files(str(tmp_path / name)) == read_files(f"{tmp_path}/*.txt") == "text"


def test_pipes_are_read_but_not_trained_on(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("from a pipe",))
    writer.start()
    assert read_files(str(pipe)) == "from a pipe"
    writer.join()
    options = {"source": "", "tokens": "char", "normalize": "none", "max_vocab": 0, "max_tokens": 0}
    with pytest.raises(UserError, match="is a pipe, which can be read only once; save the text in a file first"):
        load_corpus(path=str(pipe), valid_fraction=0.1, test_fraction=0.1, **options)


def test_devices_and_sockets_are_refused(tmp_path, monkeypatch):
    for path in ("/dev/zero", "/dev/null"):
        with pytest.raises(UserError, match=f"{path} is no file but a device"):
            read_files(path)
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as open_socket:
        open_socket.bind("socket")
        with pytest.raises(UserError, match="socket is no file but a device"):
            read_files(str(tmp_path))


# Folders of runs


def of_run(folder):
    write_json(folder / "config.json", {"steps": 1})
    write_json(folder / "vocabulary.json", {"kind": "char", "normalize": "none", "tokens": ["<unk>", "a"]})
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "array").write_bytes(b"\0")
    (folder / "samples.txt").write_text("a sample")


def of_sweep(folder):
    write_json(folder / "results.json", {"members": [], "settings": [], "best": None})
    (folder / "results.csv").write_text("name")


def of_comparison(folder):
    write_json(folder / "compare.json", {"models": [], "ngrams": []})


def of_a_comparison_that_has_begun(folder):
    (folder / "ngrams").mkdir(parents=True)
    (folder / "ngrams" / "0123456789abcdef-28.npz").write_bytes(b"\0")


def of_a_run_of_a_newer_version(folder):
    write_json(folder / "vocabulary.json", {})
    (folder / "vocabulary.json").write_text('{"format": 1000}')


OURS = [of_run, of_sweep, of_comparison, of_a_comparison_that_has_begun, of_a_run_of_a_newer_version]


@pytest.mark.parametrize("make", OURS)
def test_the_folder_of_a_run_is_no_part_of_a_text(texts, make):
    before = read_files(str(texts))
    make(texts / "runs" / "mine")
    assert read_files(str(texts)) == read_files(f"{texts}/**") == before
    for path in (texts / "runs" / "mine", f"{texts}/runs/mine/*.txt"):
        with pytest.raises(UserError, match="runs/mine is the folder of a run, a sweep or a comparison"):
            read_files(str(path))


def test_files_of_similar_names_are_text(texts):
    (texts / "vocabulary.json").write_text('{"words": ["a", "b"]}')
    (texts / "results.json").write_text("not JSON at all")
    (texts / "sub" / "results.json").write_text('{"format": 2, "rows": []}')
    (texts / "sub" / "ngrams").mkdir()
    (texts / "sub" / "ngrams" / "mine.npz").write_text("no hash")
    assert read_files(str(texts)).count("\n") == 6
    of_run(texts / "mine")
    assert read_files(str(texts / "mine" / "samples.txt")) == "a sample"  # a file may be named by itself


# Lines and encodings


def test_lines_end_at_line_feeds_only():
    assert lines_of(case("linesep.txt")) == [
        "the cat sat\u2028on a mat.",
        "old dogs\x85run\x0cby sea.",
        "tea\x1cno one knew.",
        "",
    ]
    assert lines_of("a\r\nb\rc\n\nd") == ["a", "b\rc", "", "d"]


@pytest.mark.parametrize(
    "content, message",
    [
        ((CASES / "bom_bad.txt").read_bytes(), r"byte 14 is 0xff\); the rest of the file is UTF-8; .*iconv -c"),
        ((CASES / "cut_utf8.txt").read_bytes(), r"byte 34 is 0xe2, where the file ends inside a character\): the f"),
        ((CASES / "utf16.txt").read_bytes(), "the text is UTF-16; convert it: .* -f utf-16 -t utf-8 'my text' > NEW"),
        ("the cat".encode("utf-16-be"), "the text is UTF-16BE; .* -f utf-16be"),
        ("the cat".encode("utf-16-le"), "the text is UTF-16LE; .* -f utf-16le"),
        ("the cat".encode("utf-32"), "the text is UTF-32; .* -f utf-32"),
        ("“it’s”".encode("cp1252"), r"byte 0 is 0x93\); convert it: iconv -f cp1252 .* \(cp1252 is for Western"),
        ("Grün".encode("latin1"), r"byte 2 is 0xfc\); convert it: iconv -f cp1252"),
        ("кот".encode("koi8-r") + b"\x81", "convert it from its encoding with iconv"),
        ("“a” and é, ".encode() * 9 + b"\xff", "the rest of the file is UTF-8; fix that byte, or remove invalid bytes"),
        ("a\ud800b".encode(errors="surrogatepass"), r"byte 1 is 0xed\); the rest of the file is UTF-8"),
        (b"a\0b\0\0c", "a binary file"),
    ],
)  # fmt: skip
def test_what_is_not_utf8(content, message):
    with pytest.raises(UserError, match=message):
        decoded(content, "my text")


def test_the_advised_commands_make_utf8(tmp_path):
    """The command is run, with the name as the message quotes it."""
    file = tmp_path / "it's  here.txt"
    for content, expected in [
        ("“it’s”".encode("cp1252"), "“it’s”"),
        ((CASES / "utf16.txt").read_bytes(), "the cat sat on a mat.\n"),
        ("the cat".encode("utf-16-le"), "the cat"),
        ((CASES / "cut_utf8.txt").read_bytes(), "the cat sat on a mat — old dogs "),
        ((CASES / "bom_bad.txt").read_bytes(), "the cat sat on a mat.\n"),
    ]:
        file.write_bytes(content)
        with pytest.raises(UserError) as refused:
            read_files(str(file))
        command = str(refused.value).partition("iconv")[2].partition(" > NEW")[0]
        os.system(f"iconv{command} > {tmp_path / 'new'}")
        assert read_files(str(tmp_path / "new")) == expected
