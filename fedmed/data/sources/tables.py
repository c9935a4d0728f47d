"""Where images and labels come from: a CSV, class folders, or an ``.npz`` file."""

from fedmed.config import ClassFolderData, ImageTableData, NpzData
from fedmed.data.sources.class_folders import read_folders
from fedmed.data.sources.image_table import read_csv
from fedmed.data.sources.npz import read_npz
from fedmed.data.sources.raw_table import RawTable


def read_table(config: ImageTableData | ClassFolderData | NpzData) -> RawTable:
    """Read names and labels of all images.

    Parameters
    ----------
    config : ImageTableData, ClassFolderData or NpzData
        The source.

    Returns
    -------
    RawTable
        In the source's order, unchecked.

    Raises
    ------
    DataError
        If a folder, file, column or key is missing or holds something else than it should.
    ConfigError
        If ``classes`` or the columns are no usable list.
    """
    if isinstance(config, ImageTableData):
        return read_csv(config)
    return read_folders(config) if isinstance(config, ClassFolderData) else read_npz(config)
