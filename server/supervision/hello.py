"""What the server tells an authenticated site that checks its set-up before a run.

Versions, the study, the plan and the digest of the model: enough for ``flower-client --check`` to try everything
except taking part.
"""

import json
from pathlib import Path

from fedmed.config.server import ServerConfig
from fedmed.protocol.hello import Hello
from fedmed.storage.atomic_files import write_atomically
from fedmed.versions import find_versions


def write_hello(
    path: Path, config: ServerConfig, run_id: str, *, model_digest: str | None = None, round_number: int | None = None
) -> None:
    """Write the file that the SuperLink sends; what an earlier call has told of the progress stays.

    Parameters
    ----------
    path : Path
        The file.
    config : ServerConfig
        Settings of the federation.
    run_id : str
        Name of the run, part of the plan that every site approves.
    model_digest : str, optional
        As it becomes known.
    round_number : int, optional
        The round that is closed.
    """
    old: Hello = json.loads(path.read_text()) if path.is_file() else {"round": 0}
    content: Hello = {
        "versions": find_versions("fedmed", "flwr", "torch"),
        "study": config.study.model_dump(),
        "plan": config.make_plan().model_copy(update={"run_id": run_id}).model_dump(mode="json"),
        "expected_mean": config.data.expected_mean,
        "expected_std": config.data.expected_std,
        "rounds": config.rounds,
        "model_digest": old.get("model_digest") if model_digest is None else model_digest,
        "round": old.get("round", 0) if round_number is None else round_number,
    }
    write_atomically(path, json.dumps(content).encode())
