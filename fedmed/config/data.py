"""Settings of the images: where they are, how they become sites, and how the network sees them."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fedmed.config.section import BY_PATH, Section, name_kind
from fedmed.extensions import ImportPath


class PartitionConfig(Section):
    """How one collection of images becomes sites."""

    kind: Literal["column", "dirichlet", "pooled"] = "column"
    """``column``: a column of the table names the site. ``dirichlet``: label skew drawn at random. ``pooled``: all
    images at one site (centralised training, the upper reference)."""
    alpha: Annotated[float, Field(gt=0)] = 0.5
    """Concentration of ``dirichlet``: small is skewed, large is even."""
    min_images: Annotated[int, Field(ge=1)] = 10
    """Fewest images of a site under ``dirichlet``; the draw is repeated until every site has them."""


class SplitConfig(Section):
    """Shares of the three parts at every site."""

    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of images that choose the best round."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of images that are scored once, at the end."""

    @model_validator(mode="after")
    def _leave_room(self) -> "SplitConfig":
        if self.validation + self.test > 0.9:
            raise ValueError("validation + test must leave at least 0.1 of the images for training")
        return self


IdWord = Annotated[str, Field(pattern=r"^[a-z]+( [a-z]+)*$", max_length=30)]
"""What an id of the data names, as a word in the singular that takes an s in the plural."""


class DataSection(Section):
    """What all sources of images share."""

    image_size: Annotated[int, Field(ge=16, le=1024)] = 64
    """Side in pixels of the square images that the network sees."""
    augmentation: Literal["adsr", "aptos", "hifuse", "flips", "none"] = "flips"
    """Training recipe; ``fedmed/data/transforms.py`` describes each."""
    split: SplitConfig = SplitConfig()
    """Shares of train, validation and test."""
    partition: PartitionConfig = PartitionConfig()
    """How images become sites."""
    max_train_images: Annotated[int, Field(ge=1)] | None = None
    """Most training images of all sites together, for quick studies: of every class at every site the same share is
    kept, and at least one. Null: all. Validation and test keep theirs."""
    long_tail: Annotated[float, Field(ge=1)] | None = None
    """Sub-samples the training images of all sites together to a long tail, for studies of rare classes: images of the
    most frequent class for one of the rarest, the others between them in equal ratios, whole patients or lesions where
    there is an id. With ``max_train_images`` the whole tail is as much smaller as that asks for. Null: the classes stay
    as frequent as they are. Validation and test keep theirs."""
    cache_mib: Annotated[int, Field(ge=0)] = 2048
    """Decoded images kept in memory, in MiB for all sites together; what does not fit is decoded anew in every
    epoch."""
    max_bad_share: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of unreadable or mislabelled rows above which the run is refused."""
    unit: IdWord = "patient"
    """What the data's ids name, in the words of the report: ``patient``, ``lesion``, ``eye``."""


class PhantomData(DataSection):
    """Synthetic lesion-like images, generated on the fly. Not medical data."""

    source: Literal["phantom"] = "phantom"
    num_classes: Annotated[int, Field(ge=2, le=8)] = 5
    """Number of classes K."""
    images_per_site: Annotated[int, Field(ge=20)] = 400
    """Images of one site, all three parts together."""
    imbalance: Annotated[float, Field(ge=1)] = 6.0
    """Expected count of the most frequent class over that of the rarest."""
    scanner_strength: Annotated[float, Field(ge=0, le=2)] = 1.0
    """How much colour, blur, noise and contrast differ between sites; 0 is one scanner for all."""
    attribute_strength: Annotated[float, Field(ge=0, le=2)] = 1.0
    """How much sex and age band influence appearance and prevalence; 0 is not at all."""


class ImageTableData(DataSection):
    """A folder with images and a CSV that names them."""

    source: Literal["image_table"]
    root: str
    """Folder of the images; may hold ``${VARIABLE}`` or ``${VARIABLE:-default}``."""
    table: str = "labels.csv"
    """The CSV, relative to ``root``."""
    file_column: str = "file"
    """Column with the image's path relative to ``root``."""
    label_column: str = "label"
    """Column with the class name."""
    site_column: str | None = None
    """Column with the site's name, for ``partition.kind: column``."""
    group_column: str | None = None
    """Column with the patient or lesion id; images of one id stay in one part of a split."""
    attribute_columns: list[str] = Field(default=[])
    """Columns with patient attributes, for example ``[sex, age_group]``."""
    bands: dict[str, Annotated[list[float], Field(min_length=1)]] = Field(default={})
    """Attribute columns of numbers, cut into bands: column to the inner edges, increasing. ``{age: [40, 60]}`` gives
    ``<40``, ``40-59`` and ``>=60``; a value that is empty or no number is ``unknown``."""
    classes: list[str] | None = None
    """Class names in order; default: the sorted values of ``label_column``. A label that is not listed is an error."""


class ClassFolderData(DataSection):
    """One folder per class, images inside."""

    source: Literal["class_folders"]
    root: str
    """Folder that holds the class folders."""
    classes: list[str] | None = None
    """Class names in order; default: the sorted folder names."""


class NpzData(DataSection):
    """Images in one ``.npz`` file."""

    source: Literal["npz"]
    file: str
    """The file; may hold ``${VARIABLE}``."""
    images_key: str = "images"
    """uint8, N x H x W, N x H x W x 1 or N x H x W x 3."""
    labels_key: str = "labels"
    """Integers, N."""
    class_names_key: str | None = "class_names"
    """Class names, K; null where the file has none."""


class ExtensionData(DataSection):
    """Images that a function from outside fedmed reads; :mod:`fedmed.data.sources.extension` says what it returns."""

    source: ImportPath
    """``package.module:function``, installed where the images are."""
    root: str | None = None
    """Folder that is handed to it; may hold ``${VARIABLE}``. Null: none."""
    options: dict[str, Any] = Field(default={})
    """Its options, handed over as they are."""


DataConfig = Annotated[
    Annotated[PhantomData, Tag("phantom")]
    | Annotated[ImageTableData, Tag("image_table")]
    | Annotated[ClassFolderData, Tag("class_folders")]
    | Annotated[NpzData, Tag("npz")]
    | Annotated[ExtensionData, Tag(BY_PATH)],
    Discriminator(name_kind("source")),
]


class SitesData(Section):
    """Images that stay at hospitals: the coordinating site has none and only says how the network sees them."""

    source: Literal["sites"] = "sites"
    image_size: Annotated[int, Field(ge=16, le=1024)] = 64
    """Side in pixels of the square images that the network sees."""
    augmentation: Literal["adsr", "aptos", "hifuse", "flips", "none"] = "flips"
    """Training recipe; ``fedmed/data/transforms.py`` describes each."""
    expected_mean: tuple[float, float] | None = None
    """Range in which a site's mean pixel value, 0 to 1, is expected; ``flower-client --check`` compares."""
    expected_std: tuple[float, float] | None = None
    """Range in which the standard deviation of a site's pixel values is expected."""
    synthetic: bool = False
    """Whether the sites use synthetic images; the report then says so on top."""
    unit: IdWord = "patient"
    """What the ids of the sites' data name, in the words of the report: ``patient``, ``lesion``, ``eye``."""
