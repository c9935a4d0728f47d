"""How many images a site's own report says were found, left out and used; the page stays at the site."""

from pathlib import Path

from client.hospital.exclusions import RECORD_FILE
from client.hospital.site_data import Site
from fedmed.config.client import ClientConfig
from fedmed.data import count_classes
from fedmed.data.found import WITHDRAWN, FoundImages, read_found


def find_own(config: ClientConfig, site: Site | None) -> dict[str, FoundImages] | None:
    """Return this site's images, found and left out by reason, by its name.

    Parameters
    ----------
    config : ClientConfig
        Settings of this site.
    site : Site, optional
        As it is now.

    Returns
    -------
    dict or None
        None where the split does not say, or where patients may have withdrawn and nobody has counted their images.
    """
    state_dir = Path(config.state_dir)
    found = read_found(state_dir / "splits")
    if found is None:
        return None
    name = config.data_site or (next(iter(found)) if len(found) == 1 else None)
    if name not in found:
        return None
    own = found[name]
    if site is None:
        may_have_withdrawn = config.exclude is not None or (state_dir / RECORD_FILE).exists()
        return None if may_have_withdrawn else {config.name: own}
    kept = {part: sum(classes) for part, classes in count_parts(site)[site.name].items()}
    withdrawn = sum(own["kept"].values()) - sum(kept.values())
    excluded = own["excluded"] | ({WITHDRAWN: withdrawn} if withdrawn else {})
    return {config.name: {"kept": kept, "excluded": excluded}}


def count_parts(site: Site) -> dict[str, dict[str, list[int]]]:
    """Return the site's images of now by part and class, by its name."""
    parts = {"train": site.data.train, "validation": site.data.validation, "test": site.data.test}
    return {site.name: {part: count_classes(images, len(site.data.classes)) for part, images in parts.items()}}
