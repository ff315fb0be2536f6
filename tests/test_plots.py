from rnn_lm.plots.curves import learning_curve


def test_a_learning_curve_is_drawn_also_from_little(tmp_path):
    lines = [{"split": "train", "tokens": 10, "perplexity": 9.0}, {"split": "train", "tokens": 20, "perplexity": None}]
    for number, some in enumerate([[], lines, [*lines, {"split": "valid", "tokens": 20, "perplexity": 11.0}]]):
        path = tmp_path / "plots" / f"{number}.png"
        learning_curve(path, some, {"uniform": 28.0, "unigram": 17.0}, "a caption")
        assert path.read_bytes().startswith(b"\x89PNG")
