"""A hospital's images: prepared once, split for the whole study, without patients who withdrew."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from client.hospital.exclusions import RECORD_FILE, ExclusionCounts, Exclusions
from client.hospital.left_out import pad_groups
from fedmed.config import DataConfig, PartitionConfig
from fedmed.config.client import ClientConfig
from fedmed.data import SiteData, load_site, prepare_data
from fedmed.data.partition import POOLED
from fedmed.data.split_files import describe_settings, read_index, read_site
from fedmed.errors import ConfigError, DataError, RunFolderError, suggest_nearest

_KEEP_SPLIT = (
    "At a hospital a new run begins when the folder '{}' is moved away while flower-client is stopped. That deals out "
    "all images anew, so that images of the test may come into training: do it between studies only. Patients who "
    "withdrew belong into the file that 'exclude' names."
)


class HospitalData:
    """All images of a hospital, and those that may be used now.

    Parameters
    ----------
    data : SiteData
        All images.
    exclusions : Exclusions, optional
        Patients who withdrew.
    patients : mapping of str to str
        Image to the id of its patient or lesion.
    """

    def __init__(self, data: SiteData, exclusions: Exclusions | None, patients: Mapping[str, str]) -> None:
        self._all, self._exclusions, self.patients = data, exclusions, patients

    def current(self) -> SiteData:
        """Return the images that may be used now.

        Raises
        ------
        DataError
            If the list of withdrawn patients cannot be read.
        """
        return self._all if self._exclusions is None else self._exclusions.apply()

    def pad_groups(self, groups: Mapping[str, str], k: int) -> set[str]:
        """Return further images to leave out where a part is told by group; see :mod:`client.hospital.left_out`.

        Parameters
        ----------
        groups : mapping of str to str
            Every image of the part, withdrawn ones included, to its group.
        k : int
            Fewest patients that a group may lose at a time.
        """
        left_out = None if self._exclusions is None else self._exclusions.left_out
        if left_out is None:
            return set()
        return pad_groups(groups, self.patients, left_out.list_told(groups), k, left_out)

    @property
    def whole(self) -> SiteData:
        """All images, also those that may not be used any more."""
        return self._all

    @property
    def exclusion_counts(self) -> ExclusionCounts | None:
        """How much is left out; None without a list."""
        return None if self._exclusions is None else self._exclusions.counts


def load_hospital_data(config: ClientConfig) -> HospitalData:
    """Load the images that ``client.yaml`` names, splitting them at the first call.

    The split lies in ``state_dir/splits`` and stays for the whole study. Without ``data_site`` all images are this
    site's, whatever sites the table names.

    Raises
    ------
    FedmedError
        If the images, their table or the split cannot be used.
    """
    splits = Path(config.state_dir) / "splits"
    source, sites, site = _choose_source(config)
    try:
        prepared = prepare_data(source, sites, config.seed, splits, every_class=False, cut_numbers=False)
        if site not in prepared.sites:
            raise ConfigError(
                f"client.yaml: 'data_site' is '{site}'.{suggest_nearest(site, prepared.sites)} The data holds: "
                f"{', '.join(prepared.sites[:20])}. Name one of them, or leave data_site out to use all images."
            )
        data = replace(load_site(source, sites, config.seed, splits, site, source.cache_mib), name=config.name)
        groups = _read_groups(source, sites, config.seed, splits, site)
    except RunFolderError as error:
        raise RunFolderError(f"{error} {_KEEP_SPLIT.format(splits)}") from None
    except OSError as error:
        raise DataError(f"The site's data cannot be read: {error}. Check 'data' in client.yaml.") from None
    state_dir, path = Path(config.state_dir), None if config.exclude is None else Path(config.exclude)
    if path is None and not (state_dir / RECORD_FILE).exists():
        return HospitalData(data, None, groups)
    return HospitalData(data, Exclusions(path, data, groups, state_dir, config.policy.suppression.k), groups)


def _choose_source(config: ClientConfig) -> tuple[DataConfig, int | None, str]:
    """Return the settings of the data, the number of sites in it and which of them is this one."""
    data, kind = config.data, config.data.partition.kind
    drawn = data.source == "phantom" or kind == "dirichlet"
    if config.data_site is None:
        pooled = data.model_copy(update={"partition": PartitionConfig(kind="pooled")})
        return pooled, (config.data_sites or 1) if data.source == "phantom" else None, POOLED
    if kind == "pooled":
        raise ConfigError(
            f"client.yaml: 'data_site' is '{config.data_site}', but data.partition.kind is 'pooled', which makes one "
            "site of all images. Remove one of the two."
        )
    if drawn and config.data_sites is None:
        raise ConfigError(
            f"client.yaml: 'data_site' is '{config.data_site}', but 'data_sites' does not say how many sites there "
            "are in the data. Set it, or leave data_site out to use all images."
        )
    return data, config.data_sites if drawn else None, config.data_site


def _read_groups(source: DataConfig, sites: int | None, seed: int, splits: Path, site: str) -> Mapping[str, str]:
    """Return the patient or lesion of every image."""
    index = read_index(splits, describe_settings(source, sites, seed))
    assert index is not None, "the data was prepared just now"
    return {row.item.key: row.item.group for row in read_site(splits, index, site)}
