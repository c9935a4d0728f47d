"""Where images and labels come from: a CSV, class folders, an ``.npz`` file, or a function from outside fedmed."""

from fedmed.config import ClassFolderData, ExtensionData, ImageTableData, NpzData
from fedmed.data.sources.class_folders import read_folders
from fedmed.data.sources.extension import read_extension
from fedmed.data.sources.image_table import read_csv
from fedmed.data.sources.npz import read_npz
from fedmed.data.sources.raw_table import RawTable


def read_table(config: ImageTableData | ClassFolderData | NpzData | ExtensionData) -> RawTable:
    """Read names and labels of all images.

    Parameters
    ----------
    config : ImageTableData, ClassFolderData, NpzData or ExtensionData
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
        If ``classes`` or the columns are no usable list, or a function from outside fedmed is not installed or fails.
    """
    if isinstance(config, ImageTableData):
        return read_csv(config)
    if isinstance(config, ClassFolderData):
        return read_folders(config)
    return read_npz(config) if isinstance(config, NpzData) else read_extension(config)
