"""Readers of the dataset formats people already have; each gives a list of ``Record``.

:func:`load_dataset` finds out which one a path needs. The readers do not touch the images; ask
:func:`missing_images` which files are not there.
"""

from mmgem.data.readers.coco import read_coco_captions, read_karpathy
from mmgem.data.readers.dci import read_dci
from mmgem.data.readers.detect import load_dataset
from mmgem.data.readers.files import missing_images
from mmgem.data.readers.flickr import read_caption_csv, read_flickr_tokens
from mmgem.data.readers.flickr30k_entities import read_flickr30k_entities
from mmgem.data.readers.folders import read_caption_folder, read_class_folders
from mmgem.data.readers.refcoco import read_refcoco
from mmgem.data.readers.translations import add_captions, in_language
from mmgem.data.readers.visual_genome import read_visual_genome

__all__ = [
    "add_captions",
    "in_language",
    "load_dataset",
    "missing_images",
    "read_caption_csv",
    "read_caption_folder",
    "read_class_folders",
    "read_coco_captions",
    "read_dci",
    "read_flickr30k_entities",
    "read_flickr_tokens",
    "read_karpathy",
    "read_refcoco",
    "read_visual_genome",
]
