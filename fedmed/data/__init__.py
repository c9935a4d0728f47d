"""Images and labels of the sites: sources, checks, partition, splits and augmentation."""

from fedmed.data.batches import FEWEST_IN_BATCH, count_batches, make_batches
from fedmed.data.datasets import ImagePart, SiteData, count_classes, load_site
from fedmed.data.prepare import Prepared, describe_left_out, list_classes, prepare_data
from fedmed.data.transforms import (
    NUM_VIEWS,
    Transform,
    draw_views,
    make_eval_transform,
    make_train_transform,
    make_view_transform,
    normalisation,
)

__all__ = [
    "FEWEST_IN_BATCH",
    "NUM_VIEWS",
    "ImagePart",
    "Prepared",
    "SiteData",
    "Transform",
    "count_batches",
    "count_classes",
    "describe_left_out",
    "draw_views",
    "list_classes",
    "load_site",
    "make_batches",
    "make_eval_transform",
    "make_train_transform",
    "make_view_transform",
    "normalisation",
    "prepare_data",
]
