"""Settings of a distillation small enough for tests: a random teacher, so that no package is needed."""

from typing import Any

TEACHER: dict[str, Any] = {"name": "test_resnet", "source": "random", "layout": "timm", "image_size": 32}
PROMPT: dict[str, Any] = {"grid": 4, "steps": 1, "first_steps": 2}


def make_fopro(**changes: Any) -> dict[str, Any]:
    """Return a section ``fopro``, with some keys changed."""
    return {"teacher": TEACHER, "hidden": 8, "weight": 3.0, "prompt": PROMPT} | changes
