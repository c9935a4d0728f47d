"""Whether a genuine release is one for this site: of its study, of a run of its own, and not older than the last."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from client.release.content import ASK, Manifest, ReleaseError
from client.supernode.collected import find_collected
from fedmed.config.client import ClientConfig
from fedmed.errors import tame
from fedmed.protocol.release import MANIFEST_FILE

_NEVER = datetime.min.replace(tzinfo=UTC)


def check_belonging(config: ClientConfig, manifest: Manifest, state_dir: Path, *, by_itself: bool) -> None:
    """Refuse a release that is genuine, but of another study, older than the one here, or of a run of others.

    Parameters
    ----------
    config : ClientConfig
        Settings of this site.
    manifest : Manifest
        Of the release.
    state_dir : Path
        Of this site.
    by_itself : bool
        Whether no person has asked for the model; then it must be of a run in which this site took part.

    Raises
    ------
    ReleaseError
        If it does not belong here.
    """
    plan = manifest.content["plan"]
    for key in ("study", "approval"):
        wanted, found = getattr(config.policy, key), plan.get(key)
        if wanted is not None and wanted != found:
            raise ReleaseError(
                f"The released model is of {key} {tame(repr(found))}; policy.{key} allows {wanted!r} only. {ASK}"
            )
    here = find_last_time(state_dir)
    if (manifest.released or _NEVER) < here:
        raise ReleaseError(
            f"The server offers a model that was released before the one here ({here.isoformat(timespec='seconds')}). "
            f"{ASK}"
        )
    if by_itself and not (state_dir / "runs" / manifest.run_id).is_dir():
        raise ReleaseError(
            "The released model is of a run in which this site took no part. To have it all the same, type: "
            "flower-client --fetch-model"
        )


def find_last_time(state_dir: Path) -> datetime:
    """Return when the newest model that came here was released; the beginning of time if it is not known."""
    texts = [find_collected(state_dir).released]
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        texts.append(json.loads((state_dir / "model" / MANIFEST_FILE).read_bytes()).get("released"))
    return max(map(_read_time, texts))


def _read_time(text: object) -> datetime:
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return _NEVER
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
