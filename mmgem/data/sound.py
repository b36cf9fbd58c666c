"""Sounds as pictures of themselves: time to the right, pitch upwards, the brighter the louder.

So a sound is learned, embedded and captioned as a picture is, by an encoder of spectrograms
(:mod:`mmgem.encoders.transformers_audio`), and a moment of it is a box: RoIAlign over time.

A column is a hundredth of a second, a row one of 128 mel bands from 0 to 8 kHz (O'Shaughnessy 1987:
2595 log10(1 + f / 700)). A pixel is the logarithm of the power in 25 ms under a Hann window: the loudest is
255, what is 80 dB below it 0, as Whisper scales it (Radford et al. 2022, arXiv 2212.04356). All of it in Hz
and seconds, so that nothing is resampled. A sound shorter than 10.24 s, as long as AST reads, is repeated up
to there (as CLAP does, Wu et al. 2022, arXiv 2211.06687); a longer one is a wider picture.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from PIL import Image

from mmgem.data.moments import SOUND_BANDS, SOUND_COLUMNS
from mmgem.errors import ImageError, unreadable_image
from mmgem.utils.files import open_regular

_MIN_COLUMNS = 1024
_MAX_SECONDS = 60.0
_WINDOW = 0.025  # seconds
_TOP = 8000.0  # Hz
_DECADES = 8.0  # of power, that a picture shows
_CHUNK = 512  # columns that are transformed at once


def sound_seconds(path: Path) -> float:
    """How long a sound is, by its header. Raises ImageError for what is no WAV file of integers, and for one
    of more than 60 seconds."""
    samples, rate = _read(path, header=True)
    return samples.size / rate


def picture_size(seconds: float) -> tuple[int, int]:
    """Width and height in pixels of the picture of a sound."""
    return max(_MIN_COLUMNS, round(SOUND_COLUMNS * seconds)), SOUND_BANDS


def read_spectrogram(path: Path) -> Image.Image:
    """The picture of a WAV file (integers of 8 to 32 bits, any rate, its channels mixed), RGB. Raises as
    :func:`sound_seconds`, and TransientImageError for what cannot be read now."""
    samples, rate = _read(path)
    width = picture_size(samples.size / rate)[0]
    levels = log_mel(samples, rate, width)
    top = max(float(levels.max()), _DECADES - 10)  # of silence nothing is loud
    grey = np.clip((levels - top) / _DECADES + 1, 0, 1)
    return Image.fromarray(np.round(255 * grey[::-1]).astype(np.uint8)).convert("RGB")


def log_mel(samples: np.ndarray, rate: int, columns: int) -> np.ndarray:
    """Decadic logarithms, 1e-10 at least, of the power of ``samples`` ``(n,)`` from -1 to 1 in mel bands:
    ``(128, columns)`` float32, the lowest first. Column t is of the window around the second (t + 1/2) / 100,
    in samples that repeat without end."""
    size = max(2, round(_WINDOW * rate))
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    length = 2 << (size - 1).bit_length()  # zeros behind it: bands are narrower than its own resolution
    starts = np.round((np.arange(columns) + 0.5) * rate / SOUND_COLUMNS).astype(np.int64) - size // 2
    bands = mel_bands(rate, length)
    levels = []
    for at in range(0, columns, _CHUNK):
        taken = samples.take(starts[at : at + _CHUNK, None] + np.arange(size), mode="wrap") * window
        power = np.abs(np.fft.rfft(taken, length) / window.sum()) ** 2
        levels.append(np.log10(np.maximum(power @ bands, 1e-10)).T)
    return np.concatenate(levels, 1).astype(np.float32)


def mel_bands(rate: int, length: int) -> np.ndarray:
    """Weights ``(length // 2 + 1, 128)`` of the frequencies of a transform of ``length`` samples in triangles
    that are as wide on the mel scale; each begins and ends in the middle of its neighbours."""
    mels = np.linspace(0, 2595 * np.log10(1 + _TOP / 700), SOUND_BANDS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    frequencies = np.fft.rfftfreq(length, 1 / rate)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def _read(path: Path, header: bool = False) -> tuple[np.ndarray, int]:
    """Samples ``(n,)`` float32 from -1 to 1, of ``header`` alone their number, and how many are a second."""
    try:
        with open_regular(path) as file, wave.open(file, "rb") as sound:
            return _samples(sound, header)
    except (OSError, MemoryError) as error:
        raise unreadable_image(error, f"{path}: ") from error
    except (wave.Error, EOFError, ValueError) as error:
        raise ImageError(f"{path}: no WAV file that can be read: {str(error) or 'it is cut off'}") from error


def _samples(sound: wave.Wave_read, header: bool) -> tuple[np.ndarray, int]:
    rate, count = sound.getframerate(), sound.getnframes()
    width, channels = sound.getsampwidth(), sound.getnchannels()
    if count < 1 or not 1000 <= rate <= 400_000:
        raise ValueError(f"it has {count} samples, {rate} a second")
    if count > _MAX_SECONDS * rate:
        raise ValueError(f"it is {count / rate:.0f} seconds long, over {_MAX_SECONDS:.0f}; cut it")
    if header:
        return np.empty(count, np.uint8), rate
    data = np.frombuffer(sound.readframes(count), np.uint8)
    data = data[: len(data) // (width * channels) * width * channels].reshape(-1, width)
    if not len(data):
        raise ValueError("it has no samples")
    if width == 1:
        values: np.ndarray = data[:, 0].astype(np.float32) - 128
    else:  # the highest bytes of 32 bits, little endian
        wide = np.zeros((len(data), 4), np.uint8)
        wide[:, 4 - width :] = data
        values = wide.view("<i4")[:, 0] / np.float32(2**24)
    return (values.reshape(-1, channels).mean(1) / 128).astype(np.float32), rate
