"""The cells and the model in plain NumPy, one loop over t: what the real ones are compared with."""

import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def gru_step(p, h, x, *, reset_after):
    (xr, xz, xn), (hr, hz, hn) = (np.split(z, 3, -1) for z in (x @ p["w_xh"] + p["b_h"], h @ p["w_hh"]))
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    if reset_after:
        n = np.tanh(xn + r * (hn + p["b_hn"]))
    else:
        n = np.tanh(xn + (r * h) @ np.split(p["w_hh"], 3, -1)[2])
    return (1 - z) * n + z * h


def lstm_step(p, state, x):
    c, h = state
    i, f, g, o = np.split(x @ p["w_xh"] + h @ p["w_hh"] + p["b_h"], 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def forward(params, h, tokens):
    """Tokens [T, B] from the state h [B, H]: hidden states [T, B, H] and logits [T, B, V]."""
    states, logits = [], []
    for x_t in tokens:
        x_one_hot = np.eye(params["w_xh"].shape[0])[x_t]
        h = np.tanh(x_one_hot @ params["w_xh"] + h @ params["w_hh"] + params["b_h"])
        states.append(h)
        logits.append(h @ params["w_hq"] + params["b_q"])
    return np.array(states), np.array(logits)


def nats(logits, labels):
    """−ln softmax(logits)[label], each."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probs, labels[..., None], -1)[..., 0]


def gradients(params, h0, tokens, labels):
    """The mean cross-entropy and its gradients, by backpropagation through time written out."""
    states, logits = forward(params, h0, tokens)
    grads = {name: np.zeros_like(value) for name, value in params.items()}
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    d_h = np.zeros_like(h0)
    for t in reversed(range(len(tokens))):
        d_o = (probs[t] - np.eye(probs.shape[-1])[labels[t]]) / labels.size
        grads["w_hq"] += states[t].T @ d_o
        grads["b_q"] += d_o.sum(0)
        d_z = (d_h + d_o @ params["w_hq"].T) * (1 - states[t] ** 2)
        grads["w_xh"] += np.eye(params["w_xh"].shape[0])[tokens[t]].T @ d_z
        grads["w_hh"] += (states[t - 1] if t else h0).T @ d_z
        grads["b_h"] += d_z.sum(0)
        d_h = d_z @ params["w_hh"].T
    return nats(logits, labels).mean(), grads


def real_time_recurrent_learning(params, tokens, labels):
    """The gradients of the summed cross-entropy over tokens [T], forward in time: nothing is kept, nothing goes back.

    With u_t = (x_t, h_{t-1}, 1) and Θ = (w_xh, w_hh, b_h) stacked, h_t = tanh(u_t Θ). What is carried along is
    P_t = ∂h_t / ∂Θ, which is diag(1 − h_t²) (u_t ⊗ I + w_hhᵀ P_{t-1}). Williams, Zipser 1989.
    """
    theta = np.concatenate([params["w_xh"], params["w_hh"], params["b_h"][None]])
    V, H = params["w_xh"].shape
    h, p = np.zeros(H), np.zeros((H, *theta.shape))
    d_theta, d_w_hq, d_b_q = np.zeros_like(theta), 0.0, 0.0
    for token, label in zip(tokens, labels, strict=True):
        u = np.concatenate([np.eye(V)[token], h, [1.0]])
        h = np.tanh(u @ theta)
        p = np.einsum("i,jk->kij", u, np.eye(H)) + np.einsum("mk,mij->kij", params["w_hh"], p)
        p *= (1 - h**2)[:, None, None]
        o = h @ params["w_hq"] + params["b_q"]
        d_o = np.exp(o - o.max()) / np.exp(o - o.max()).sum() - np.eye(V)[label]
        d_theta += np.einsum("k,kij->ij", params["w_hq"] @ d_o, p)
        d_w_hq += np.outer(h, d_o)
        d_b_q += d_o
    w_xh, w_hh, b_h = np.split(d_theta, [V, V + H])
    return {"w_xh": w_xh, "w_hh": w_hh, "b_h": b_h[0], "w_hq": d_w_hq, "b_q": d_b_q}


def numpy_params(model):
    """The parameters of an `RNNLM` without an embedding, as float64."""
    named = {"w_xh": model.cell.w_xh, "w_hh": model.cell.w_hh, "b_h": model.cell.b_h, "w_hq": model.w_hq}
    return {name: np.asarray(p[...], np.float64) for name, p in {**named, "b_q": model.b_q}.items()}
