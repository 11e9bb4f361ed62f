"""LAMB line by line in NumPy, for one tensor."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def lamb(weight, grads, *, rate, decay, beta2, adapt):
    """The weight after one step per gradient: You et al. 2020, algorithm 2; plain Adam where `adapt` is False."""
    m = np.zeros_like(weight)
    v = np.zeros_like(weight)
    w = weight.copy()
    for t, g in enumerate(grads, start=1):
        m = 0.9 * m + 0.1 * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat = m / (1 - 0.9**t)
        v_hat = v / (1 - beta2**t)
        r = m_hat / (np.sqrt(v_hat) + 1e-6)
        if not adapt:
            w = w - rate * r
            continue
        u = r + decay * w
        w_norm = float(np.sqrt((w * w).sum()))
        u_norm = float(np.sqrt((u * u).sum()))
        trust = w_norm / u_norm if w_norm > 0 and u_norm > 0 else 1.0
        w = w - rate * trust * u
    return w
