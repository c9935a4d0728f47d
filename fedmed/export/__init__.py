"""The models that leave a run.

In train form, for sites that go on from it: :func:`write_model`. As an artefact that is enough by itself:
:mod:`fedmed.export.artefact`, :mod:`fedmed.export.run` and the command ``python -m fedmed.export``, which are imported
only where something is exported, because they need the ONNX runtime.
"""

from fedmed.export.model_folder import load_model, write_model

__all__ = ["load_model", "write_model"]
