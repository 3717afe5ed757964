"""What a telephone does to speech: its narrow band, noise, and other people talking behind. All from a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.signal import butter, resample_poly, sosfiltfilt

from cookbook.audio import RATE

BAND = (300.0, 3400.0)  # Hz, of a telephone line (ITU-T G.712)
LINE = 8_000  # samples a second on it


def telephone(samples: np.ndarray) -> np.ndarray:
    """What comes out of a telephone line: its band, 8,000 samples a second, the steps of 8-bit mu-law (G.711)."""
    slow = resample_poly(samples, LINE, RATE)
    narrow = sosfiltfilt(butter(4, BAND, "bandpass", fs=LINE, output="sos"), slow)
    peak = max(float(np.abs(narrow).max()), 1e-9)
    curved = np.sign(narrow) * np.log1p(255 * np.abs(narrow) / peak) / np.log(256)
    curved = np.round(curved * 127) / 127
    heard = np.sign(curved) * np.expm1(np.abs(curved) * np.log(256)) / 255 * peak
    return resample_poly(heard, RATE, LINE)[: len(samples)].astype(np.float32)


def pink(length: int, rng: np.random.Generator) -> np.ndarray:
    """Noise whose power falls with frequency, as that of rooms and lines does (1/f)."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    return np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), length).astype(np.float32)


def babble(length: int, others: Sequence[np.ndarray], rng: np.random.Generator, voices: int = 5) -> np.ndarray:
    """Several people talking at once: clips drawn from `others`, looped, each from a random place."""
    drawn = rng.choice(len(others), size=min(voices, len(others)), replace=False)
    parts = [np.resize(np.roll(others[i], rng.integers(len(others[i]))), length) for i in drawn]
    return np.sum([part / max(float(np.std(part)), 1e-6) for part in parts], axis=0).astype(np.float32)


def add(samples: np.ndarray, noise: np.ndarray, decibels: float) -> np.ndarray:
    """Speech with noise at a ratio of signal to noise in decibels, by the power of both."""
    ratio = 10 ** (-decibels / 20) * np.std(samples) / max(float(np.std(noise)), 1e-9)
    mixed = samples + ratio * noise
    return (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)


def spoil(samples: np.ndarray, kind: str, others: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Speech as `kind` says: "none", or in this order what stands between " + ", such as "babble 10 dB + telephone".

    Raises:
        ValueError: an unknown kind.
    """
    for part in kind.split(" + "):
        name, _, level = part.partition(" ")
        match name:
            case "none":
                continue
            case "telephone":
                samples = telephone(samples)
            case "pink" | "babble" if level.endswith(" dB"):
                length = len(samples)
                behind = pink(length, rng) if name == "pink" else babble(length, others, rng)
                samples = add(samples, behind, float(level.removesuffix(" dB")))
            case _:
                raise ValueError(f"unknown kind of noise {part!r}; known: none, telephone, pink N dB, babble N dB")
    return samples
