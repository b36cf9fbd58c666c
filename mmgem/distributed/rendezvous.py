"""How the processes of a run find each other, however often they are started again.

``torchrun`` keeps one key-value store for all attempts of a job, and in it what the processes of earlier
attempts have written. One that looks for its peer before the peer has written its new address finds that of
a dead process, and is refused there or waits for ever (pytorch/pytorch#135712). So processes agree on a
prefix of their own first, and put it before every key. The number of restarts would not do: each machine
counts its own.
"""

from __future__ import annotations

import secrets
import time
from datetime import timedelta

import torch.distributed as dist


def fresh_store(timeout: timedelta) -> dist.Store:
    """A store that only the processes of this attempt see; which they are is in the environment.

    ``timeout``: to wait for the others. Raises ``dist.DistStoreError`` if they do not come.
    """
    shared_store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    shared_store.set_timeout(timeout)
    return dist.PrefixStore(agree_on_prefix(shared_store, rank, size, timeout.total_seconds()), shared_store)


def agree_on_prefix(store: dist.Store, rank: int, size: int, timeout: float) -> str:
    """The main process's random word, on each of ``size`` processes.

    Rank 0 gives it as the answer to a random word of each other, again until each has said that it has it. So
    what earlier attempts left in ``store`` is never taken for an answer.
    """
    nonce = secrets.token_hex(8)
    if rank:
        store.set(f"asks/{rank}", nonce)
        prefix = store.get(f"answer/{nonce}").decode()
        store.set(f"{prefix}/{rank}", "heard")
        return prefix
    deadline = time.monotonic() + timeout
    for other in range(1, size):
        while not store.check([f"{nonce}/{other}"]):
            store.set(f"answer/{store.get(f'asks/{other}').decode()}", nonce)
            if time.monotonic() > deadline:
                raise dist.DistStoreError(f"rank {other} of {size} did not come within {timeout:.0f} s")
            time.sleep(0.02)
    return nonce
