"""A network as an ONNX file: one file, any batch size, nothing in it about the machine that wrote it."""

import ctypes
import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedmed.errors import FedmedError

OPSET = 18
INPUT, OUTPUT = "images", "logits"
_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


class ExportError(FedmedError):
    """A model cannot be exported, or what was exported is not what was trained."""


def write_onnx(model: nn.Module, image_size: int, file: Path) -> None:
    """Write a network as ONNX.

    Parameters
    ----------
    model : nn.Module
        On the CPU; is set to evaluation mode. (B, 3, S, S) float32 to logits (B, K).
    image_size : int
        S.
    file : Path
        Gets the input ``images`` and the output ``logits``, both with a free batch size. Equal networks give equal
        bytes.

    Raises
    ------
    ExportError
        If the network has a part that ONNX or its exporter does not know, or is above 2 GB.

    Notes
    -----
    The exporter notes for every node from which line of which file it came; that, and all other documentation, is
    removed, because it names folders of this machine.
    """
    import onnx  # noqa: PLC0415  (with its exporter it takes seconds and memory, which only an export should pay)

    proto = _convert(model.eval(), image_size)
    release_memory()  # the exporter's graph, which holds the weights once more
    _strip(proto)
    try:
        file.write_bytes(proto.SerializeToString(deterministic=True))
        del proto
        onnx.checker.check_model(str(file))
    except OSError:
        raise
    except Exception as error:  # protobuf and the checker have no common class of errors
        raise ExportError(f"The model cannot be written as one ONNX file: {_first_line(error)}.") from error


def release_memory() -> None:
    """Give back what is no longer used: an export handles a large model several times, one after the other."""
    gc.collect()
    with suppress(OSError, AttributeError):  # only the GNU C library keeps freed memory for itself, and has this
        ctypes.CDLL(None).malloc_trim(0)


def _convert(model: nn.Module, image_size: int) -> Any:
    example = torch.zeros(2, 3, image_size, image_size)
    try:
        with _quiet(), torch.no_grad():
            batch = torch.export.Dim("batch")
            program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},), strict=False)
            exported = torch.onnx.export(
                program,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert exported is not None, "with dynamo=True there is a result"
            return exported.model_proto
    except Exception as error:  # the exporter's errors have no common class
        raise ExportError(
            f"The network {type(model).__name__} cannot be written as ONNX: {_first_line(error)}. Its modules must not "
            "depend on the batch size, and use operations that torch.onnx knows."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from telling its progress and what it will do in future versions."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip(proto: Any) -> None:
    proto.producer_name, proto.producer_version, proto.domain, proto.doc_string = "fedmed", "", "", ""
    del proto.metadata_props[:]
    _strip_graph(proto.graph)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for function in proto.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        del function.value_info[:]
        _strip_nodes(function.node)


def _strip_graph(graph: Any) -> None:
    graph.doc_string, graph.name = "", "model"
    del graph.metadata_props[:]
    del graph.value_info[:]  # shapes between the layers, which a runtime finds by itself
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Any) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            for graph in (attribute.g, *attribute.graphs):
                if graph.node:
                    _strip_graph(graph)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300].rstrip(".") if lines else type(error).__name__
