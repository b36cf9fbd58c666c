"""Large collections, embedded and captioned partition by partition, in this process or by workers on Ray.

The way of a photo: :mod:`mmgem.bulk.collection` finds and numbers it and says which partition it is in,
:mod:`mmgem.bulk.worker` makes that partition, :mod:`mmgem.bulk.output` is the folder it goes to;
:mod:`mmgem.bulk.on_ray` has several workers work at once, :mod:`mmgem.bulk.run` is the whole.
"""

from mmgem.bulk.run import BulkReport, embed_collection

__all__ = ["BulkReport", "embed_collection"]
