"""Positions that are computed rather than learned."""

import numpy as np


def sinusoidal_positions(length: int, hidden_size: int) -> np.ndarray:
    """The table [length, hidden_size], float32, of Vaswani et al. 2017, section 3.5.

    PE(pos, 2i) = sin(pos / 10000^(2i/E)) and PE(pos, 2i+1) = cos(the same).
    """
    angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, hidden_size, 2)[None, :] / hidden_size)
    table = np.empty((length, hidden_size), np.float32)
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles)
    return table
