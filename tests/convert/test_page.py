"""The page that generates text in a browser: the numbers and the text of JAX, with any vocabulary."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import urlencode

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_lm
from rnn_lm.config import complete_config
from rnn_lm.convert.page import to_page
from rnn_lm.convert.weights import Weights, model_fields
from rnn_lm.data.vocabulary import Vocabulary, readable, tokenize
from rnn_lm.errors import UserError
from rnn_lm.program import new_model, program_of
from rnn_lm.runs.load import arrays_of, model_with

NODE = shutil.which("node")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_node = pytest.mark.skipif(not NODE, reason="no node here to run JavaScript")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no chromium or google-chrome here to open the page")

LETTERS = Vocabulary(list("\n abcdefgh"), kind="char", normalize="none")


def make(vocabulary=LETTERS, *, seed=0, scales=(), **fields):
    """A model with random numbers in all its arrays, also in biases, and its weights. `scales`: factors by name."""
    fields = model_fields(**{"cell": "gru", "num_hiddens": 8} | fields)
    config, rng = complete_config({"model": fields}), np.random.default_rng(seed)
    arrays = {}
    for name, array in arrays_of(new_model(*program_of(config, len(vocabulary)))).items():
        scale = dict(scales).get(name.rpartition(".")[2], 1.0) / (np.sqrt(len(array)) if array.ndim > 1 else 2)
        arrays[name] = (scale * rng.standard_normal(array.shape).astype(np.float32)).astype(np.float32)
    model = model_with(config, arrays, len(vocabulary))
    return model, Weights(fields, arrays, vocabulary)


def logits_of(model, ids):
    """The logits [T, V] after each token."""
    return np.asarray(model(model.initialize_carry(1), jnp.asarray(ids)[:, None])[1][:, 0])


def in_node(page, code, **given):
    """What a piece of JavaScript gives that knows the page's model, and `given`."""
    parts = {name: re.search(f'<script id="{name}".*?>(.*?)</script>', page, re.DOTALL)[1]
             for name in ("model", "data", "weights")}  # fmt: skip
    values = {"data": json.loads(parts["data"]), "weights": parts["weights"]} | given
    constants = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    script = f"{parts['model']}\n{constants}\nconsole.log(JSON.stringify((() => {{ {code} }})()))"
    done = subprocess.run([NODE, "-"], input=script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Elements(HTMLParser):
    """What is in a page: its tags, and the text of each element that has an id or a class, by its name."""

    def __init__(self, page):
        super().__init__()
        self.open, self.texts, self.tags = [], {}, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "input", "br", "img"):
            self.open.append((tag, dict(attrs).get("id") or dict(attrs).get("class")))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for name in {name for _, name in self.open if name}:
            self.texts[name] = self.texts.get(name, "") + data


def in_chromium(tmp_path, page, *, script="", **fragment):
    """The page's elements after it has done what the fragment says, and then the script."""
    file = tmp_path / "index.html"
    file.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    url = f"file://{file}" + (f"#{urlencode(fragment)}" if fragment else "")
    command = [CHROMIUM, *flags, "--virtual-time-budget=60000", "--dump-dom", url]
    return Elements(subprocess.run(command, capture_output=True, timeout=60, check=True).stdout.decode())


# Numbers


CASES = {
    "elman": {"cell": "elman"},
    "relu": {"cell": "elman", "activation": "relu", "layer_norm": True},
    "identity": {"cell": "elman", "activation": "identity", "num_layers": 2},
    "gru": {"cell": "gru", "num_layers": 3},
    "gru, embedding": {"cell": "gru", "embed_dim": 5, "layer_norm": True},
    "gru, reset before": {"cell": "gru", "reset_after": False, "num_layers": 2},
    "lstm": {"cell": "lstm"},
    "lstm, tied": {"cell": "lstm", "embed_dim": 8, "tie": True, "num_layers": 2},
    "lstm, layer norm": {"cell": "lstm", "layer_norm": True, "num_layers": 2},
    "mlp": {"kind": "mlp", "context": 3},
    "mlp, tied": {"kind": "mlp", "context": 4, "embed_dim": 8, "tie": True, "activation": "relu"},
    "bfloat16": {"cell": "gru", "embed_dim": 8, "tie": True, "dtype": "bfloat16"},
}


@needs_node
@pytest.mark.parametrize("fields", CASES.values(), ids=CASES.keys())
def test_logits_are_those_of_jax(fields):
    model, weights = make(**fields)
    ids = np.random.default_rng(1).integers(0, len(LETTERS), 20)
    code = """
      const model = readModel(data, weights);
      let state = initialState(model), logits;
      return ids.map((id) => {
        [state, logits] = step(model, state, id);
        return [...logits];
      });"""
    got, expected = np.array(in_node(to_page(weights, title=""), code, ids=ids.tolist())), logits_of(model, ids)
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


@needs_node
def test_draws_have_their_probabilities_and_are_never_unknown():
    logits = np.array([9, 1, 0.5, -1, 1], np.float32)
    code = """
      const random = randomNumbers(seed), counts = [0, 0, 0, 0, 0];
      const p = probabilities(Float32Array.from(logits), 0.7);
      for (let i = 0; i < 20000; i++) counts[draw(p, random())] += 1 / 20000;
      return [[...p], counts, [...probabilities(Float32Array.from(logits), 0)], draw([0, 0.5, 0.4, 0], 0.95)];"""
    given = {"logits": logits.tolist(), "seed": 2**32 - 1}
    p, counts, certain, at_the_edge = in_node(to_page(make()[1], title=""), code, **given)
    expected = [0, *jax.nn.softmax(logits[1:] / 0.7)]
    np.testing.assert_allclose(p, expected, rtol=1e-6)
    np.testing.assert_allclose(counts, expected, atol=0.015)  # four standard deviations
    assert certain == [0, 1, 0, 0, 0]  # the first of two equal ones
    assert at_the_edge == 2
    broken = "try { probabilities([0, 1, NaN], 1); } catch (error) { return error.message; }"
    assert "not finite" in in_node(to_page(make()[1], title=""), broken)


# Text


WORDS = "To be,  or\tnot \n\nto be: 200 \u2028 caf\u00e9 \x1cthat\ufeff \x85 is \U0001f600 <unk>\n"


@needs_node
@pytest.mark.parametrize("kind", ["char", "word", "byte"])
@pytest.mark.parametrize("normalize", ["none", "letters"])
def test_text_is_read_and_written_as_by_vocabulary(kind, normalize):
    vocabulary = Vocabulary.of(tokenize(WORDS * 2, kind, normalize), kind=kind, normalize=normalize)
    prompts = [WORDS, "to be \n", "\ufeffbe", "\u00e9\U0001f600z", "New", "  ", "", "\n"]
    ids = np.random.default_rng(0).integers(1, len(vocabulary), 100).tolist()
    code = """
      const vocabulary = readVocabulary(data.vocabulary);
      return [vocabulary.start, prompts.map((prompt) =>
        [encode(vocabulary, prompt), decode(vocabulary, encode(vocabulary, prompt)), unknownIn(vocabulary, prompt),
         prompt + textAfter(vocabulary, prompt, ids)])];"""
    start, got = in_node(to_page(make(vocabulary)[1], title=""), code, prompts=prompts, ids=ids)
    assert start == vocabulary.start
    for prompt, (encoded, decoded, unknown, text) in zip(prompts, got, strict=True):
        assert encoded == vocabulary.encode(prompt).tolist()
        assert decoded == vocabulary.decode(encoded)
        assert list(map(readable, unknown)) == vocabulary.unknown_in(prompt)
        assert text == vocabulary.continue_text(prompt, ids)


@needs_node
def test_tokens_are_shown_so_that_they_can_be_read():
    signs = {"\n": "⏎", " ": "␣", "\t": "⇥", "\u2028": "\\u2028", "\u202e": "\\u202e", "\u0301": "◌\u0301",
             "\u200d": "\\u200d", "a\u200db": "a\u200db", "that\ufeff": "that\\ufeff", "200": "200", "<b>": "<b>",
             10: "⏎", 0: "\\u0000", 97: "a", 0x7f: "\\u007f", 0x80: "\\x80", 0xff: "\\xff"}  # fmt: skip
    code = "return tokens.map(readable)"
    assert in_node(to_page(make()[1], title=""), code, tokens=list(signs)) == list(signs.values())


# The page


@needs_chromium
def test_the_browser_writes_the_text_that_generate_writes(tmp_path):
    """At temperature 0, for 500 characters that hardly repeat themselves.

    Sums are rounded in another order than in XLA, and a token could change where two are almost equally likely. Here
    none are: the likeliest logit leads by a hundred times the difference of two roundings, about 1e-5. That does not
    grow with time, because this model forgets its states.
    """
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = Vocabulary(list(f"\n {letters}{letters.upper()}.,"), kind="char", normalize="none")
    scales = {"w_xh": 8, "w_hh": 1.7, "w_hq": 3}
    model, weights = make(vocabulary, seed=28, scales=scales, num_layers=2, num_hiddens=32)
    prompt, ids = vocabulary.prompt_of("Once")
    new = rnn_lm.generate(model, ids, 500, key=jax.random.key(0), temperature=0.0)[0]
    text = vocabulary.continue_text(prompt, new)
    assert len({text[i : i + 8] for i in range(500)}) > 400
    *_, second, first = np.sort(logits_of(model, [*ids, *new])[len(ids) - 1 : -1, 1:]).T
    assert (first - second).min() > 1e-3

    texts = in_chromium(tmp_path, to_page(weights, title="A model"), prompt=prompt, length=500, temperature=0).texts
    assert texts["text"] == text
    assert texts["status"] == "500 tokens"


USE = """
  const get = (id) => document.getElementById(id), text = () => get("text").textContent, results = {};
  const bars = (part) => [...document.querySelectorAll(`#next .${part}`)].map((element) => element.textContent);
  const wait = (time) => new Promise((resolve) => setTimeout(resolve, time));
  async function click(id) {
    get(id).click();
    while (!get("stop").disabled) await wait(10);
    return text();
  }
  function type(id, value) {
    get(id).value = value;
    get(id).dispatchEvent(new Event("input"));
  }
  window.onload = async () => {
    results.start = [text(), bars("token"), bars("share"), get("prompt").placeholder];
    type("prompt", "cab Zé");
    results.unknown = [text(), get("unknown").textContent];
    type("prompt", "cab");
    type("length", 40);
    type("seed", 3);
    results.seed3 = [await click("generate"), await click("generate")];
    results.seed4 = [await click("another"), get("seed").value];
    type("length", 20);
    type("seed", 3);
    results.halves = [await click("generate"), await click("more")];
    results.last = [bars("token"), bars("share")];
    document.querySelectorAll("#next button")[2].click();
    results.appended = [text(), bars("token")];
    type("temperature", 0);
    results.cold = [bars("token"), bars("share"), get("degrees").textContent];
    type("length", 90000);
    get("generate").click();
    await wait(100);
    get("stop").click();
    results.stopped = [text().length, document.activeElement.id];
    await wait(100);
    results.stopped.push(text().length);
    location.hash = "#prompt=a%20%26+b&length=5&temperature=0&seed=7";
    await wait(1000);
    results.link = [text(), get("length").value, get("seed").value];
    document.body.append(Object.assign(document.createElement("pre"), { id: "results" }));
    get("results").textContent = JSON.stringify(results);
  };"""


@needs_chromium
def test_the_page_in_use(tmp_path):
    model, weights = make(scales={"w_xh": 3})
    page = to_page(weights, title="A model")
    assert "innerHTML" not in page
    results = json.loads(in_chromium(tmp_path, page, script=USE).texts["results"])

    def next_tokens(ids):
        """What the bars show: the tokens after these, the likeliest first, and their shares."""
        p = jax.nn.softmax(logits_of(model, ids)[-1, 1:])
        order = np.argsort(-p)
        signs = [{"\n": "⏎", " ": "␣"}.get(token, token) for token in LETTERS.tokens[1:]]
        shares = [f"{100 * p[i]:.1f} %" if p[i] > 0.001 else "< 0.1 %" for i in order]
        return [signs[i] for i in order], shares

    assert results["start"] == ["", *next_tokens([LETTERS.start]), "Empty: the text starts after ⏎"]
    assert results["unknown"] == ["cab Zé", "Not in the vocabulary, read as <unk>: Z, é"]
    first, again = results["seed3"]
    assert first == again and first.startswith("cab") and len(first) == 43
    assert results["seed4"][0] != first and results["seed4"][1] == "4"
    assert results["halves"] == [first[:23], first]
    tokens, shares = next_tokens(LETTERS.encode(first))
    assert results["last"] == [tokens, shares]
    third = {"⏎": "\n", "␣": " "}.get(tokens[2], tokens[2])
    tokens, _ = next_tokens(LETTERS.encode(first + third))
    assert results["appended"] == [first + third, tokens]
    assert results["cold"] == [tokens, ["100.0 %"] + (len(tokens) - 1) * ["0.0 %"], "0.00"]
    length, focus, length_later = results["stopped"]
    assert 100 < length < 90000 and length_later == length and focus == "more"
    ids = LETTERS.encode("a & b")
    new = rnn_lm.generate(model, ids, 5, key=jax.random.key(0), temperature=0.0)[0]
    assert results["link"] == [LETTERS.continue_text("a & b", new), "5", "7"]


DANGEROUS = {
    "char": ["<", ">", "&", '"', "'", "\\", "`", "\u2028", "\u2029", "\U0001f600", "\x00", "$"],
    "word": ["</script>", "<!--", "<script>", "-->", '"', "\\u003c", "{{weights}}", "&lt;", "\U0001f600", "${1}",
             "<img/src=x/onerror=document.title=1>"],
}  # fmt: skip


@needs_chromium
@pytest.mark.parametrize("kind", DANGEROUS)
def test_no_token_breaks_the_page(tmp_path, kind):
    tokens = DANGEROUS[kind]
    _, weights = make(Vocabulary(tokens, kind=kind, normalize="none"), scales={"w_hq": 0.1, "b_q": 0})
    title, about = "</title></script>", "</script><img src=x onerror=document.title=1> & {{data}}"
    prompt = (" " if kind == "word" else "").join(tokens).replace("\x00", "")
    page = in_chromium(tmp_path, to_page(weights, title=title, about=about), prompt=prompt, length=300)
    assert page.tags.count("script") == 5 and "img" not in page.tags  # ours, and the empty one of this test
    assert page.texts["about"] == about
    assert page.texts["given"] == prompt
    assert not page.texts.get("unknown")
    added = page.texts["added"].split() if kind == "word" else page.texts["added"]
    assert set(added) == set(tokens)
    for token in tokens:
        assert (token if token.isprintable() else ascii(token)[1:-1].replace("\\x", "\\u00")) in page.texts["token"]


@needs_chromium
def test_a_model_that_predicts_nothing_says_so(tmp_path):
    _, weights = make()
    weights.arrays["b_q"][3] = np.nan
    page = in_chromium(tmp_path, to_page(weights, title="A model", about="of letters"), length=5)
    assert page.texts["status"] == "The model predicts nothing: its logits are not finite."
    # 3 gates, 8 units, 11 tokens with <unk>: w_xh, w_hh, b_h, b_hn, w_hq, b_q.
    assert page.texts["kind"] == f"GRU, 8 hidden units; 10 characters; {11 * 24 + 8 * 24 + 24 + 8 + 88 + 11} parameters"


def test_a_cell_of_ones_own_is_refused_in_one_line():
    weights = make()[1]
    own = Weights(weights.model | {"cell": "mgu"}, weights.arrays, weights.vocabulary)
    with pytest.raises(UserError, match=r"^the page cannot compute the cell 'mgu'; it knows elman, gru, lstm$"):
        to_page(own, title="")
