"""Images and labels of the sites: sources, checks, partition, splits and augmentation."""

from fedmed.data.datasets import ImagePart, SiteData, count_classes, load_site
from fedmed.data.prepare import Prepared, prepare_data
from fedmed.data.transforms import Transform, make_eval_transform, make_train_transform, normalisation

__all__ = [
    "ImagePart",
    "Prepared",
    "SiteData",
    "Transform",
    "count_classes",
    "load_site",
    "make_eval_transform",
    "make_train_transform",
    "normalisation",
    "prepare_data",
]
