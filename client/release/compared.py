"""Whether a released model is the one that was compared before the release.

A site that took part in the comparison has kept the hashes of what it compared. One that was away looks at the list of
comparisons in the signed manifest, so that at least one other site must have compared it; else a person has to say so.
"""

import logging
from pathlib import Path

from client.hospital.compared import read_own_comparison
from client.release.content import Manifest, ReleaseError
from fedmed.errors import tame

NOTHING = "Nothing was put in place. Tell the coordinating site."
_MOST_NAMED = 5
_logger = logging.getLogger("fedmed.client")


def check_compared(state_dir: Path, manifest: Manifest, *, accept_uncompared: bool) -> str:
    """Check that a release is what was compared, by this site or by others.

    Parameters
    ----------
    state_dir : Path
        Of this site.
    manifest : Manifest
        Of the release, whose signature was checked.
    accept_uncompared : bool
        Whether a person takes a model that no site is known to have compared.

    Returns
    -------
    str
        Who compared it, for people.

    Raises
    ------
    ReleaseError
        If it is another model than the one that was compared, or nobody compared it and no person takes it.
    """
    run_folder = state_dir / "runs" / manifest.run_id
    own = read_own_comparison(run_folder)
    if own is not None and dict(own.files) == manifest.names and not own.agrees:
        raise ReleaseError(
            "The released model is the one of which this site has found that its deployable form is not what was "
            f"trained. {NOTHING}"
        )
    if own is not None and own.agrees:
        _check_names(dict(own.files), manifest.names, "this site")
        if own.num_images:
            return f"this site on {own.num_images} of its test images"
    if not manifest.is_deployable and _has_tested(run_folder, manifest.model_sha256):
        return "nobody, as it is in train form; this site has tested it"
    others = _find_others(manifest)
    if others:
        return others
    if accept_uncompared:
        _logger.warning("No site is known to have compared the released model; a person at this site takes it.")
        return "nobody; it was taken with --accept-uncompared"
    raise ReleaseError(
        "This site has not compared the released model before its release, and the release names no other site that "
        "has. Nothing was put in place. Ask the coordinating site why; to have the model all the same, type: "
        "flower-client --fetch-model --accept-uncompared"
    )


def _has_tested(run_folder: Path, model_sha256: str) -> bool:
    return any((run_folder / "test_tables").glob(f"{model_sha256}*.safetensors"))  # with the state of the images


def _find_others(manifest: Manifest) -> str:
    """Return which sites the signed list names; empty if none."""
    found = []
    for site, told in manifest.compared.items():
        _check_names(told.sha256, manifest.names, f"the site {tame(site, 60)}")
        if not manifest.is_deployable:
            found.append(tame(site, 60))
        elif told.num_images:
            found.append(f"{tame(site, 60)} ({told.num_images} images)")
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    listed = ", ".join(found[:_MOST_NAMED]) + more
    if not listed:
        return ""
    return listed if manifest.is_deployable else f"nobody, as it is in train form; tested by {listed}"


def _check_names(compared: dict[str, str], released: dict[str, str], who: str) -> None:
    """Refuse a release of which a file is not the one that was compared."""
    wrong = sorted(name for name in {*compared, *released} if compared.get(name) != released.get(name))
    if wrong:
        raise ReleaseError(
            f"The file {wrong[0]} of the release is not the one that {who} has compared: its content was changed "
            f"since. {NOTHING}"
        )
