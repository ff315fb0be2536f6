import math
import os
import threading
import time

import pytest

from rnn_lm.files import alone_in, dumps, read_json, write_bytes, write_json


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.txt"
    write_bytes(path, b"old")

    def replace(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]
    assert path.read_bytes() == b"old"


def test_numbers_that_are_not_finite_are_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": [math.inf, 1.5], "b": {"c": math.nan}})
    assert read_json(tmp_path / "x.json") == {"a": [None, 1.5], "b": {"c": None}}
    assert dumps({"text": "ü"}) == '{"text": "ü"}'


def test_only_one_is_alone_in_a_folder_and_others_wait_or_give_up(tmp_path):
    order = []

    def second():
        with alone_in(tmp_path):
            order.append("second")

    with alone_in(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        with alone_in(tmp_path, give_up=lambda: True):
            time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
