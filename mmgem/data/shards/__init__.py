"""Shards: many photos and what is said of them in one file, for collections too large for loose files.

:func:`find_shards` and :func:`open_shard` read tars in webdataset's layout and parquet, :func:`pack` writes
both; :func:`open_photos` reads photos alone, also those of which nothing is said. Training streams shards:
:class:`mmgem.data.shards.stream.ShardStream` is the order, :class:`mmgem.data.shards.batches.StreamBatches`
the batches.
"""

from mmgem.data.shards.find import find_shards, open_photos, open_shard
from mmgem.data.shards.shard import Sample, Shard
from mmgem.data.shards.write import Packed, pack
from mmgem.utils.shard_paths import is_shards

__all__ = ["Packed", "Sample", "Shard", "find_shards", "is_shards", "open_photos", "open_shard", "pack"]
