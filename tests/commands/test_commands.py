"""The command line as a user meets it: exit codes, one line of error, what goes to stdout."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import rnn_lm
from rnn_lm import plots
from rnn_lm.commands import VERBS, main
from rnn_lm.commands.train import describe
from rnn_lm.inference import evaluate as inference
from rnn_lm.runs.folder import read_config
from rnn_lm.runs.load import corpus_of
from tests.commands.conftest import assert_fits
from tests.reference import forward, nats, numpy_params

ROOT = Path(rnn_lm.__file__).parents[1]
CHAR = str(ROOT / "experiments" / "char.py")
SMALL = (
    ""
    "def get_config():\n"
    "    return {{'batch_size': 4, 'segment_length': 8, 'steps': {steps}, 'model': {{'num_hiddens': 16}},\n"
    "            'eval_every': 100, 'corpus': {{'path': {path!r}}}}}\n"
)


@pytest.fixture
def experiment(tmp_path, text_file):
    """A config file for a small run; more than a test waits for where steps is not given."""

    def write(steps=10**6):
        path = tmp_path / "small.py"
        path.write_text(SMALL.format(steps=steps, path=str(text_file)))
        return str(path)

    return write


def test_training_prints_results_and_runs_can_be_used(cli, tmp_path, experiment):
    workdir = tmp_path / "run"
    code, out, err = cli("--config", experiment(30), "--workdir", workdir, "--config.steps=40", "--config.seed=3")
    assert code == 0
    for part in ("Finished: 40 steps", "perplexity", "unigram", "python run.py generate"):
        assert part in out
    heads = [line.partition(": ")[0] for line in err.splitlines()]
    expected = ["text", "tokens", "vocabulary", "model", "device", "machine code (C++ kernels)", "folder", "step 0/40"]
    assert heads[: len(expected)] == expected
    assert "a sample at step 40, after 32 tokens of the validation text (perplexity " in err
    assert json.loads((workdir / "config.json").read_text())["seed"] == 3
    again = cli("--config", experiment(40), "--config.seed=3", "--workdir", workdir)
    assert again[:2] == (0, out) and again[2].startswith("this run is done; a larger --config.steps")
    model, vocabulary = rnn_lm.load(workdir)
    assert model.vocab_size == len(vocabulary)


def test_evaluate_equals_an_independent_numpy_pass(cli, run_folder, tmp_path):
    text = Path(__file__).read_text()[:3000]
    path = tmp_path / "text.txt"
    path.write_text(text)
    code, out, err = cli("evaluate", "--workdir", run_folder, "--text", path, "--reset_every=100")
    assert code == 0 and "warning: the text has tokens that the vocabulary lacks" in err
    result = json.loads(out)
    model, vocabulary = rnn_lm.load(run_folder)
    params, ids = numpy_params(model), vocabulary.encode(text)
    states, logits = forward(params, np.zeros((1, 16)), ids[:-1, None])
    expected = nats(logits, ids[1:, None])
    assert result["tokens"] == len(text) - 1 and result["unknown"] == int((ids[1:] == 0).sum()) > 0
    assert result["nll"] == pytest.approx(expected.mean(), rel=1e-4)
    assert result["perplexity"] == pytest.approx(np.exp(expected.mean()), rel=1e-4)
    assert result["bits_per_char"] == pytest.approx(expected.mean() / np.log(2), rel=1e-4)
    assert result["max_abs_h"] == pytest.approx(np.abs(states).max(), rel=1e-4)
    assert result["reset"]["every"] == 100 and result["reset"]["nll"] != result["nll"]
    stated = {"split": "text", "seed": 0, "vocab_size": len(vocabulary), "carry": "one stream", "text": str(path)}
    assert result | stated | {"sha256": hashlib.sha256(text.encode()).hexdigest()} == result


def test_evaluate_warns_where_its_figures_mislead(cli, run_folder, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("the ÄÖÜ" * 20)
    _, _, err = cli("evaluate", "--workdir", run_folder, "--text", path)
    assert "diverges" not in err and "of the tokens are unknown" not in err
    path.write_text("the ÄÖÜÄÖÜ" * 20)
    monkeypatch.setattr(inference, "runs_away", lambda carried, reset: True)
    code, out, err = cli("evaluate", "--workdir", run_folder, "--text", path)
    assert code == 0 and json.loads(out)["tokens"] == 199
    assert "warning: 60% of the tokens are unknown to the vocabulary" in err
    assert "warning: the state diverges over the text" in err and "largest values |h| = " in err


def test_the_final_screen_says_what_to_make_of_the_figures(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    assert not summary["test"]["runs_away"] and summary["test"]["reset"]["every"] == 1000
    assert "plots/learning_curve.png" in describe(summary, run_folder)

    def said(perplexity, *, train=1.1, ngram=2.0, best_step=60, away=False, unknown=0):
        changed = {
            "test": summary["test"] | {"perplexity": perplexity, "runs_away": away, "unknown": unknown},
            "train": {"perplexity": train},
            "best_step": best_step,
            "baselines": summary["baselines"] | {"ngram": {"order": 6, "perplexity": ngram, "bits_per_char": 1.0}},
        }
        return " ".join(describe(summary | changed, run_folder).split())

    advice = {
        "it beats the baselines. To see how far it gets, the same command with --config.steps=120": said(1.1),
        "it does not beat the n-gram model yet. Try more hidden units, or more steps:": said(2.1, train=1.5),
        "it does not beat token frequencies yet. Try another learning rate, or more steps:": said(1e3, train=900),
        "the model memorised the training text": said(1e3),
        "predicted best at step 40 of 60, and no better since": said(1.2, best_step=40),
        "the state diverges over this long text. With the state reset every 1000 tokens": said(1e3, away=True),
    }
    for wanted, screen in advice.items():
        assert screen.count("Advice: ") == 1 and [text for text in advice if text in screen] == [wanted]
    assert "does not beat token frequencies" in said(None, train=None)  # null is an infinite perplexity
    assert "5% of the tokens are <unk>" in said(1.1, unknown=summary["test"]["tokens"] // 20)
    older = summary | {"baselines": {name: summary["baselines"][name] for name in ("uniform", "unigram")}}
    assert "n-gram" not in describe(older, run_folder)


@pytest.mark.parametrize("mix, dynamic", [("ngram", False), ("none", True), ("ngram", True)])
def test_evaluate_reads_with_ngrams_and_learns(cli, run_folder, mix, dynamic):
    flags = ["--workdir", run_folder, f"--mix={mix}", *(["--dynamic"] if dynamic else [])]
    code, out, _ = cli("evaluate", *flags)
    report = json.loads(out)
    assert code == 0 and (report["mix"], report["dynamic"]) == (mix, dynamic)
    assert ("reset" in report) != dynamic  # what is learned is not taken back
    model, _ = rnn_lm.load(run_folder, mix=mix)
    assert report["nll"] == pytest.approx(
        inference.evaluate(model, corpus_of(run_folder).test.ids, dynamic=dynamic).nll
    )
    summary = json.loads((run_folder / "summary.json").read_text())
    assert report["nll"] < summary["test"]["nll"]  # the small run has much to learn, from both


def test_evaluate_without_a_text_is_the_test_split_of_the_summary(cli, run_folder):
    code, out, _ = cli("evaluate", "--workdir", run_folder)
    summary = json.loads((run_folder / "summary.json").read_text())
    assert code == 0
    assert json.loads(out)["nll"] == pytest.approx(summary["test"]["nll"], rel=1e-6)
    assert json.loads(out)["tokens"] == summary["test"]["tokens"]


def test_without_matplotlib_no_plot_is_announced_and_the_hint_comes_once(run_folder, tmp_path, capsys, monkeypatch):
    shutil.copytree(run_folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "plots")
    summary = json.loads((run_folder / "summary.json").read_text())
    screen = describe(summary, tmp_path / "run")
    assert "metrics.jsonl" in screen and "plots" not in screen
    plots._say_what_is_missing.cache_clear()
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    assert [plots.can_draw() for _ in range(3)] == [False] * 3
    assert capsys.readouterr().err == "no plots: matplotlib is missing (pip install 'rnn_lm[plots]')\n"
    plots._say_what_is_missing.cache_clear()


def test_the_config_of_a_run_on_a_path_names_no_other_text(run_folder, text_file):
    corpus = json.loads((run_folder / "config.json").read_text())["corpus"]
    assert corpus["path"] == str(text_file) and "source" not in corpus
    assert read_config(run_folder)[0].corpus.source == "shakespeare"  # the default, as in older runs


def test_results_for_people_fit_their_terminal(run_folder, capsys, columns, tmp_path):
    summary = json.loads((run_folder / "summary.json").read_text())
    assert_fits(
        describe(summary, run_folder).replace(str(run_folder), "runs/small"),
        columns,
        f"{summary['test']['perplexity']:.2f}",
        "Advice:",
    )
    assert main(["evaluate", f"--workdir={run_folder}"]) == 0
    screen = capsys.readouterr().out
    figures = [summary["test"], summary["test"]["reset"]]
    assert_fits(screen.replace(str(tmp_path.parent), ""), columns, *(f"{row['nll']:.4f}" for row in figures))
    assert "{" not in screen and "one stream" in screen and "|h| = " in screen
    assert main(["generate", f"--workdir={run_folder}", "--length=5", "--num_samples=2"]) == 0
    assert re.fullmatch(r"(?s)--- sample 0\n.{6}\n--- sample 1\n.{6}\n", capsys.readouterr().out)
    (tmp_path / "in").write_text("the machine " * 20)
    assert main(["compress", f"--workdir={run_folder}", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    screen = capsys.readouterr().out
    assert_fits(screen, columns, "240", f"{(tmp_path / 'out').stat().st_size}")
    assert screen.startswith("240 bytes became") and "probabilities promise" in screen


@pytest.mark.parametrize("columns", [80], indirect=True)
def test_a_terminal_gets_no_control_characters_of_a_text(cli, run_folder, columns):
    code, out, _ = cli("generate", "--workdir", run_folder, "--prompt=the \x1b[31m", "--length=5")
    assert code == 0 and out.startswith("the ␛[31m") and "\x1b" not in out


def test_generate_prints_the_prompt_and_exactly_n_more_tokens(cli, run_folder):
    command = ("generate", "--workdir", run_folder, "--prompt=the time", "--length=50")
    code, first, _ = cli(*command, "--seed=1")
    assert code == 0
    assert first.startswith("the time") and len(first) == len("the time") + 50 + 1 and first.endswith("\n")
    assert cli(*command, "--seed=1")[1] == first
    assert cli(*command, "--seed=2")[1] != first
    _, lines, _ = cli(*command, "--seed=1", "--num_samples=3")
    samples = [json.loads(line) for line in lines.splitlines()]
    assert [sample["sample"] for sample in samples] == [0, 1, 2]
    assert samples[0]["text"] == first[:-1]
    code, out, err = cli("generate", "--workdir", run_folder, "--prompt=Ü the", "--length=5")
    assert code == 0 and out.startswith("Ü the") and "'Ü'" in err and "<unk>" not in out
    assert len(cli("generate", "--workdir", run_folder, "--length=9")[1]) == 1 + 9 + 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--config is missing; for example --config=char"),
        (["trian"], "unknown verb 'trian'; did you mean 'train'"),
        (["--config=none.py"], "--config=none.py: no such file"),
        (["--config=."], "--config=.: a folder, not a file; for example"),
        (["--config", CHAR, "--wrokdir=x"], "unknown flag --wrokdir; did you mean --workdir? (--help lists the flags)"),
        (["--config.stesp=3", "--config", CHAR], "did you mean --config.steps?"),
        (["--learning_rate=3", "--config", CHAR], "did you mean --config.optimizer.learning_rate?"),
        (["--config.lr=3", "--config", CHAR], "unknown flag --config.lr (--help"),  # unlike all: no guess
        (["--config.batch_size=0", "--config", CHAR], "config.batch_size is 0; it must be at least 1"),
        (["--config", CHAR, "--config.optimizer.learning_rate=nan"], "learning_rate is nan"),
        (["--config", CHAR, "--config.steps=1e3"], "--config.steps=1e3: it takes a whole number"),
        (["--config", CHAR, "--config.optimizer.learning_rate=a"], "learning_rate=a: it takes a number"),
        (["generate", "--strict=maybe"], "--strict=maybe: it takes true or false"),
        (["generate", "--mix=ngrams"], "--mix=ngrams: value should be one of <none|ngram>"),
        (["generate", "--length"], "--length"),
        (["--config", CHAR, "--config.model.cell=elmen"], "did you mean 'elman'"),
        (["--config", CHAR, "--config.optimizer.name=adm"], "did you mean 'adam'"),
        (["--config", CHAR, "--config.corpus.source=shakespere"], "did you mean 'shakespeare'"),
        (["--config", CHAR, "--config.corpus.tokens=chars"], "did you mean 'char'"),
        (["--config", CHAR, "more"], "unexpected argument 'more'"),
        (["--config", CHAR, "--config.corpus.path=/none.txt"], "/none.txt: no such file, folder or glob"),
        (["evaluate"], "--workdir is missing"),
        (["--config", CHAR, "--workdir="], "--workdir is missing"),
        (["evaluate", "--workdir=none"], "--workdir=none holds no run"),
        (["evaluate", "--workdir=RUN", "--reset_every=0"], "--reset_every is 0"),
        (["evaluate", "--workdir=RUN", "--reset_every=9", "--dynamic"], "--reset_every cannot be used with --dynamic"),
        (["evaluate", "--workdir=RUN", "--text=none.txt"], "none.txt: no such file"),
        (["evaluate", "--workdir=RUN", "--text", CHAR, "--strict"], "the vocabulary lacks"),
        (["generate", "--workdir=RUN", "--prompt="], "--prompt is empty"),
        (["generate", "--workdir=RUN", "--prompt=Ü", "--strict"], "the vocabulary lacks: 'Ü'"),
        (["generate", "--workdir=RUN", "--length=0"], "--length is 0; it must be from 1"),
        (["generate", "--workdir=RUN", "--temperature=nan"], "--temperature is nan"),
        (["generate", "--workdir=RUN", "--top_p=1.5"], "--top_p is 1.5"),
        (["generate", "--workdir=RUN", "--seed=-1"], "--seed is -1"),
        (["generate", "--workdir=RUN", "--prompt=a\udcff"], "is not UTF-8"),
        (["generate", "--workdir=RUN", "--length=1000000", "--num_samples=1000"], "--length times --num_samples"),
        (["evaluate", "--workdir=RUN", "--text="], "the path of the text is empty"),
        (["--config", CHAR, "--config.corpus.path=~nobody/x"], "no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(cli, run_folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*(argument.replace("RUN", str(run_folder)) for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not list(tmp_path.iterdir())


def test_an_error_shows_its_traceback_if_that_is_asked_for(cli, tmp_path, monkeypatch):
    path = tmp_path / "conf.py"
    path.write_text("def get_config():\n    raise ValueError('red \\x1b[31m\\nnext')\n")
    line = f"error: {path}:2: raise ValueError('red \\x1b[31m\\nnext'): ValueError: red ␛[31m next\n"
    monkeypatch.setenv("RNN_LM_DEBUG", "0")
    assert cli("--config", path) == (2, "", line)
    monkeypatch.setenv("RNN_LM_DEBUG", "1")
    code, out, err = cli("--config", path)
    assert (code, out) == (2, "") and err.endswith(f"\n{line}") and "\x1b" not in err
    assert err.startswith("Traceback") and f'File "{path}", line 2, in get_config' in err
    assert cli("evaluate", "--workdir=none")[2].startswith("Traceback")


def test_a_folder_that_cannot_be_written_is_one_line(cli, tmp_path, experiment):
    (tmp_path / "file").write_text("x")
    code, out, err = cli("--config", experiment(1), "--workdir", tmp_path / "file" / "run")
    assert (code, out, err.count("\n")) == (2, "", 1) and "file" in err


def test_a_folder_without_permission_is_named_with_what_to_do(cli, tmp_path, experiment, monkeypatch):
    def refuse(path, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write everywhere, so no mode of a folder stops it
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    code, _, err = cli("--config", experiment(1), "--workdir", tmp_path / "runs" / "mine")
    line = f"error: cannot write in {tmp_path}: Permission denied; give another folder, or a copy of it"
    assert (code, err.splitlines()[-1]) == (2, line)


def test_a_changed_text_or_a_damaged_run_is_one_line(cli, run_folder, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run_folder, workdir)
    config = json.loads((workdir / "config.json").read_text())
    other = tmp_path / "other.txt"
    other.write_text("another text " * 100)
    config["corpus"]["path"] = str(other)
    (workdir / "config.json").write_text(json.dumps(config))
    assert "has changed since the run was trained" in cli("evaluate", "--workdir", workdir)[2]
    for name, content in [("vocabulary.json", "{}"), ("config.json", "[1"), ("vocabulary.json", "")]:
        (workdir / name).write_text(content)
        code, _, err = cli("evaluate", "--workdir", workdir)
        assert (code, err.count("\n")) == (2, 1)
    shutil.rmtree(workdir / "checkpoints")
    shutil.copy(run_folder / "config.json", workdir)
    shutil.copy(run_folder / "vocabulary.json", workdir)
    assert "has no checkpoint yet" in cli("generate", "--workdir", workdir)[2]


def test_a_loss_that_is_finite_but_huge_has_diverged_too(cli, experiment, tmp_path):
    settings = ["--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e5", "--config.optimizer.clip_norm=0"]
    command = ["--config", experiment(3), "--workdir", tmp_path / "run", *settings]
    code, out, err = cli(*command)
    assert (code, out) == (3, "") and "the perplexity or a gradient is not finite at step" in err
    assert not (tmp_path / "run" / "summary.json").exists()
    assert cli(*command)[:2] == (3, "")


def test_running_out_of_memory_is_one_line_and_leaves_nothing_behind(cli, experiment, tmp_path):
    code, out, err = cli("--config", experiment(3), "--config.model.num_hiddens=3000000", "--workdir", tmp_path / "run")
    assert (code, out) == (2, "") and err.splitlines()[-1].startswith("error: out of memory")
    assert not (tmp_path / "run").exists()


def test_divergence_exits_with_3(cli, experiment, tmp_path):
    settings = ["--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e9", "--config.optimizer.clip_norm=0"]
    settings += ["--config.model.activation=relu", "--workdir", str(tmp_path / "run")]
    code, out, err = cli("--config", experiment(50), *settings)
    assert (code, out) == (3, "")
    assert err.splitlines()[-1].startswith("error: training diverged: ")


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_answers_within_a_second_on_stdout(verb):
    command = [sys.executable, "-X", "importtime", str(ROOT / "run.py"), *([verb] if verb else []), "--help"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    assert time.perf_counter() - start < 3  # a second on an idle machine; this one may be busy
    assert done.returncode == 0 and "python run.py" in done.stdout
    assert "| jax\n" not in done.stderr
    assert not re.search(r"\S  +\S", done.stdout.partition("Flags:")[2])  # one space between two words


def test_help_is_understood_as_a_verb(cli):
    assert cli("help") == cli("--help") and cli("help")[0] == 0


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_process_saves_and_exits(tmp_path, experiment, signum, code):
    workdir = tmp_path / "run"
    command = [sys.executable, str(ROOT / "run.py"), "--config", experiment(), "--workdir", str(workdir)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        deadline = time.monotonic() + 60
        while not (workdir / "metrics.jsonl").exists() or not (workdir / "metrics.jsonl").read_text():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "run the same command to resume" in err and "Traceback" not in err
    assert len(list((workdir / "checkpoints").iterdir())) >= 1


def shell(command):
    return subprocess.run(
        command.replace("RUN", f"{sys.executable} {ROOT}/run.py"), shell=True, capture_output=True, text=True
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here to stand for a full disk")
def test_results_that_cannot_be_written_are_an_error():
    done = shell("RUN --help > /dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "error: " in done.stderr


def test_a_reader_that_leaves_early_is_no_error(run_folder):
    assert shell("RUN --help | true").stderr == ""
    done = shell(f"RUN generate --workdir={run_folder} --length=100000 | head -c 10")
    assert len(done.stdout) == 10 and done.stderr == ""


def test_a_training_whose_reader_leaves_is_not_done(tmp_path, experiment):
    shell(f"(RUN --config={experiment(1)} --workdir={tmp_path / 'run'} 2>&1; echo $? > {tmp_path / 'code'}) | true")
    assert (tmp_path / "code").read_text() == "141\n"
    assert not (tmp_path / "run" / "summary.json").exists()


def test_closed_streams_are_no_error():
    assert (shell("RUN --help <&- >&- 2>&-").returncode, shell("RUN --help >&-").stderr) == (0, "")


def test_a_long_generation_can_be_stopped(run_folder):
    command = [sys.executable, str(ROOT / "run.py"), "generate", "--workdir", str(run_folder), "--length=100000000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        time.sleep(5)  # it has started to draw by then, or has not yet; a signal must end it in both cases
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    finally:
        process.kill()
