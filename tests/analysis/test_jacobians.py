import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rnn_lm.analysis.gradients import windows_of
from rnn_lm.analysis.jacobians import lyapunov_exponents, recurrent_spectra
from rnn_lm.nn.models import RNNLM
from tests.analysis.test_gradients import IDS, H, V, linear_model
from tests.reference import lstm_step


def test_the_exponents_of_a_linear_cell_are_the_logarithms_of_its_eigenvalues():
    model = linear_model(0.9, hidden=6)
    exponents, errors = lyapunov_exponents(model, windows_of(np.tile(IDS, 20), 4, 300), warm_up=100, count=6)
    moduli = np.abs(np.linalg.eigvals(np.asarray(model.cell.w_hh[...], np.float64)))
    np.testing.assert_allclose(exponents, np.sort(np.log(moduli))[::-1], atol=0.02)
    assert exponents[0] == pytest.approx(np.log(0.9), abs=0.01) and (errors < 0.01).all()


def test_the_exponents_of_an_lstm_add_up_to_the_change_of_volumes():
    """Their sum is the mean of log |det J_t|, whatever the first directions were; J_t by finite differences."""
    model = RNNLM(V, 3, rngs=nnx.Rngs(0), cell="lstm", embed_dim=2)
    windows = windows_of(IDS, 2, 20)
    exponents, _ = lyapunov_exponents(model, windows, warm_up=0, count=6)
    params = {name: np.asarray(getattr(model.cell, name)[...], np.float64) for name in ("w_xh", "w_hh", "b_h")}
    logs = []
    for text in windows.T:
        state = np.zeros(6)
        for x in np.asarray(model.embedding[...], np.float64)[text]:
            step = lambda s, x=x: np.concatenate(lstm_step(params, (s[:3], s[3:]), x))  # noqa: E731
            columns = [(step(state + e) - step(state - e)) / 2e-5 for e in 1e-5 * np.eye(6)]
            logs.append(np.log(np.abs(np.linalg.det(columns))))
            state = step(state)
    assert exponents.sum() == pytest.approx(np.mean(logs), rel=1e-3)


@pytest.mark.parametrize("cell, gates", [("elman", "h"), ("gru", "rzn"), ("lstm", "ifgo")])
def test_spectra_are_of_each_gate_of_each_layer(cell, gates):
    model = RNNLM(V, H, rngs=nnx.Rngs(0), cell=cell, num_layers=2, recurrent_init=nnx.initializers.orthogonal(0.7))
    spectra = recurrent_spectra(model)
    assert [(s["layer"], s["gate"]) for s in spectra] == [(layer, gate) for layer in (1, 2) for gate in gates]
    for spectrum in spectra:
        assert spectrum["spectral_radius"] == pytest.approx(0.7, rel=1e-5)
        np.testing.assert_allclose(spectrum["singular_values"], 0.7, rtol=1e-5)
        np.testing.assert_allclose(np.hypot(*np.transpose(spectrum["eigenvalues"])), 0.7, rtol=1e-5)


def test_the_warm_up_is_left_out():
    """The first growth of a random direction by a matrix far from normal is not that of its eigenvalues."""
    model = RNNLM(V, 2, rngs=nnx.Rngs(0), activation="identity")
    model.cell.w_hh[...] = jnp.asarray([[0.9, 5.0], [0.0, 0.5]])
    exponents, errors = lyapunov_exponents(model, windows_of(IDS, 3, 20), warm_up=20)
    np.testing.assert_allclose(exponents, np.log([0.9, 0.5]), rtol=1e-3)
    assert (errors < 1e-3).all()


def test_the_errors_are_those_of_a_mean_over_texts():
    """A tanh unit that reads one token again and again settles at an h; then each step multiplies by w (1 − h²)."""
    w, settled = 0.9, np.array([0.0, 0.5, 0.8])
    model = RNNLM(3, 1, rngs=nnx.Rngs(0))
    model.cell.w_hh[...] = jnp.full((1, 1), w)
    model.cell.w_xh[...] = jnp.asarray(np.arctanh(settled) - w * settled, jnp.float32)[:, None]
    exponents, errors = lyapunov_exponents(model, np.tile(np.arange(3), (81, 1)), warm_up=40)
    of_text = np.log(w * (1 - settled**2))
    assert exponents[0] == pytest.approx(of_text.mean(), rel=1e-4)
    off = of_text - of_text.mean()
    assert errors[0] == pytest.approx(np.sqrt(off @ off / 2 / 3), rel=1e-4)
