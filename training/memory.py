"""Want of memory as a sentence that names the largest batch that fits."""

import contextlib
import traceback
from collections.abc import Callable, Iterator

from training import parallel
from training.config import TrainingError

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")


def full(error: BaseException) -> bool:
    """Whether it says that there is no memory left; torch's CPU allocator says so in a RuntimeError."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


@contextlib.contextmanager
def explained(rows: int, attempt: Callable[[int], object], advice: str, unit: int = 1) -> Iterator[None]:
    """Around a step on `rows` rows: where it finds no memory, steps on half as many are tried until one fits.

    attempt(n) takes a whole step on n rows, a multiple of `unit`. It may change weights: nothing of the run is saved
    after. advice: the next step, with {fits} and {parts} (ceil(rows / fits)) to be filled in.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not full(error) or parallel.size() > 1:  # the other ranks would wait for a step that this one does not take
            raise
        traceback.clear_frames(error.__traceback__)  # the step's tensors live in them
        fits = _largest(rows, attempt, unit)
        if not fits:
            few = "1 row fits" if unit == 1 else f"{unit} rows fit"
            raise TrainingError(
                f"A batch of {rows} rows found no memory, and not even {few}: take a smaller model or context."
            ) from None
        told = advice.format(fits=fits, parts=-(-rows // fits))
        raise TrainingError(f"A batch of {rows} rows found no memory; {fits} rows at once fit: {told}.") from None


def _largest(rows: int, attempt: Callable[[int], object], unit: int) -> int:
    while rows := rows // unit // 2 * unit:
        try:
            attempt(rows)
        except (MemoryError, RuntimeError) as error:
            if not full(error):
                raise
            traceback.clear_frames(error.__traceback__)
        else:
            return rows
    return 0
