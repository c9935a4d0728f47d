"""The unlabelled images of the coordinating site, on which the small network is distilled."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from fedmed.config import ExtensionData, FolderProxy, NpzData, PhantomData, ProxyConfig, RunConfig
from fedmed.data import ImagePart, load_site
from fedmed.data.split_files import describe_settings, read_index
from fedmed.distillation import ProxyDataUnavailableError, ProxyImages, open_proxy_folder, open_proxy_phantom
from fedmed.distillation.small_network.proxy_images import REMEDY, list_proxy_files
from fedmed.distillation.small_network.proxy_overlap import JudgedImage, check_disjoint
from server.rounds.session import Session

_MOST_PHANTOM_CLASSES = 8


def open_proxy(session: Session) -> ProxyImages:
    """Return the unlabelled images of the coordinating site.

    Raises
    ------
    ProxyDataUnavailableError
        If there are none.
    """
    config, plan = session.config, session.plan
    proxy = _find_settings(session)
    if isinstance(proxy, FolderProxy):
        return open_proxy_folder(Path(proxy.root), recipe=plan.augmentation, image_size=plan.image_size)
    phantom = config.data if isinstance(config.data, PhantomData) else PhantomData(image_size=plan.image_size)
    number = min(max(2, len(plan.classes)), _MOST_PHANTOM_CLASSES)
    return open_proxy_phantom(
        phantom.model_copy(update={"num_classes": number}), proxy.images, seed=plan.seed, recipe=plan.augmentation
    )


def check_proxy(session: Session) -> None:
    """Refuse to begin without unlabelled images; in a simulation also with some on which a model is judged.

    In a real federation the server knows no hash of a site's image, and asks for none.

    Raises
    ------
    ProxyDataUnavailableError
        If there are no unlabelled images.
    DataError
        If some of them are validation or test images of a site.
    """
    proxy = _find_settings(session)
    if not isinstance(proxy, FolderProxy):
        return  # the phantom's can always be made, and come from a scanner that no site has
    open_proxy(session)
    config = session.config
    if not isinstance(config, RunConfig) or isinstance(config.data, PhantomData):
        return
    folder = Path(proxy.root)
    check_disjoint(folder, list_proxy_files(folder), _list_judged(config, session.run.splits))


def _find_settings(session: Session) -> ProxyConfig:
    fopro = session.config.fopro
    if fopro is None or fopro.proxy is None:
        raise ProxyDataUnavailableError(
            f"fopro.compression.kind is 'proxy', and no unlabelled images are named. {REMEDY}."
        )
    return fopro.proxy


def _list_judged(config: RunConfig, splits: Path) -> Iterator[JudgedImage]:
    """Yield the validation and test images of all sites of a simulation."""
    assert not isinstance(config.data, PhantomData), "the phantom is in no file"
    index = read_index(splits, describe_settings(config.data, config.sites, config.seed))
    assert index is not None, "the images were split before the run began"
    for name in index.composition:
        site = load_site(config.data, config.sites, config.seed, splits, name, cache_mib=0)
        for title, part in (("validation", site.validation), ("test", site.test)):
            for place, item in enumerate(part.items):
                told = f"'{item}' of the {title} images of {name}"
                if isinstance(config.data, NpzData | ExtensionData):
                    yield JudgedImage(told, partial(_read, part, place))
                else:
                    yield JudgedImage(told, Path(config.data.root) / item)


def _read(part: ImagePart, place: int) -> Tensor:
    return part.images([place])[0]
