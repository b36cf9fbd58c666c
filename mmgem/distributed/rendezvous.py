"""How the processes of a run find each other, however often they are started again.

``torchrun`` keeps one key-value store for all attempts of a job, and in it what the ranks of earlier attempts
have written. A rank that looks for its peer before the peer has written its new address finds that of a dead
process, and is refused there or waits for ever (pytorch/pytorch#135712). So ranks agree on a word of their
own first, and put it before every key. The number of restarts would not do: each machine counts its own.
"""

from __future__ import annotations

import secrets
import time
from datetime import timedelta

import torch.distributed as dist


def fresh_store(timeout: timedelta) -> dist.Store:
    """A store that only the ranks of this attempt see; which they are is in the environment.

    ``timeout``: to wait for the others. Raises ``dist.DistStoreError`` if they do not come.
    """
    shared, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    shared.set_timeout(timeout)
    return dist.PrefixStore(agreed_word(shared, rank, size, timeout.total_seconds()), shared)


def agreed_word(store: dist.Store, rank: int, size: int, timeout: float) -> str:
    """Rank 0's random word, on each of ``size`` ranks.

    Rank 0 gives it as the answer to a random word of each other, again until each has said that it has it. So
    what earlier attempts left in ``store`` is never taken for an answer.
    """
    own = secrets.token_hex(8)
    if rank:
        store.set(f"asks/{rank}", own)
        word = store.get(f"answer/{own}").decode()
        store.set(f"{word}/{rank}", "heard")
        return word
    end = time.monotonic() + timeout
    for other in range(1, size):
        while not store.check([f"{own}/{other}"]):
            store.set(f"answer/{store.get(f'asks/{other}').decode()}", own)
            if time.monotonic() > end:
                raise dist.DistStoreError(f"rank {other} of {size} did not come within {timeout:.0f} s")
            time.sleep(0.02)
    return own
