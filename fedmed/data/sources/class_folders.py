"""Images in one folder a class."""

from fedmed.config import ClassFolderData
from fedmed.data.sources.raw_table import ImageRow, RawTable, check_class_list, find_root, hash_text
from fedmed.errors import DataError

_NOT_IMAGES = {"thumbs.db", "desktop.ini"}


def read_folders(config: ClassFolderData) -> RawTable:
    """Return the images below a folder that has one folder for each class."""
    root = find_root(config.root)
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError(
            f"The folder '{root}' (data.root) holds no folders. Allowed: one folder per class, with images inside."
        )
    files = [
        (path.relative_to(root).as_posix(), folder)
        for folder in folders
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() or path.is_symlink()
        if not path.name.startswith(".") and path.name.lower() not in _NOT_IMAGES
    ]
    where = f"the folder '{root}'"
    if not files:
        raise DataError(f"In {where} all class folders are empty: {', '.join(folders)}. Put JPEG or PNG files in them.")
    return RawTable(
        where=where,
        rows=tuple(ImageRow(place, name, folder) for place, (name, folder) in enumerate(files, start=1)),
        classes=check_class_list(folders if config.classes is None else config.classes),
        attribute_names=(),
        has_sites=False,
        root=root,
        fingerprint=hash_text(name for name, _ in files),
    )
