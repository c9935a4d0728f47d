"""Whether an ONNX file that came from elsewhere is nothing but a network.

An ONNX file can name other files on this machine, carry operators of its own for which a runtime loads libraries, hold
functions and loops, and keep options for the runtime that opens it. A network that this library exports has none of
these, so a file with any of them is refused before a runtime sees it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from fedmed.errors import WireError
from fedmed.export.onnx_file import INPUT, OUTPUT

STANDARD_DOMAINS = ("", "ai.onnx")
_MOST_NODES = 100_000


def check_plain_onnx(data: bytes) -> None:
    """Check that a file is one plain graph of standard operators with all its weights inside.

    Parameters
    ----------
    data : bytes
        Content of the file.

    Raises
    ------
    WireError
        With what is in it that must not be; the text may be told to whoever sent the file.
    """
    import onnx  # noqa: PLC0415  (a tenth of a second and some memory, which only a release should pay)

    try:
        proto = onnx.ModelProto.FromString(data)
    except Exception:  # protobuf's errors are not all of one class
        raise WireError("The ONNX file cannot be read.") from None
    problem = next(_find_problems(proto), None)
    if problem is not None:
        raise WireError(f"The ONNX file holds {problem}, which no exported model of this library does.")


def _find_problems(proto: Any) -> Iterator[str]:
    if not all(entry.domain in STANDARD_DOMAINS for entry in proto.opset_import):
        yield "operators that are not of ONNX itself"
    if proto.functions:
        yield "functions of its own"
    if proto.training_info:
        yield "instructions for training"
    if proto.metadata_props:
        yield "options for the program that runs it"
    graph = proto.graph
    if [value.name for value in graph.input] != [INPUT] or [value.name for value in graph.output] != [OUTPUT]:
        yield f"other inputs or outputs than '{INPUT}' and '{OUTPUT}'"
    if len(graph.node) > _MOST_NODES:
        yield f"more than {_MOST_NODES} operators"
    if graph.sparse_initializer:
        yield "sparse weights"
    if any(map(_is_outside, graph.initializer)):
        yield "weights that lie in another file"
    yield from _find_problems_of_nodes(graph.node)


def _find_problems_of_nodes(nodes: Iterable[Any]) -> Iterator[str]:
    from onnx import defs  # noqa: PLC0415

    for node in nodes:
        if node.domain not in STANDARD_DOMAINS or not defs.has(node.op_type):
            yield "operators that are not of ONNX itself"
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                yield "a graph within the graph, such as a loop"
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                yield "sparse weights"
            if any(map(_is_outside, (attribute.t, *attribute.tensors))):
                yield "weights that lie in another file"
            if attribute.ref_attr_name:
                yield "functions of its own"


def _is_outside(tensor: Any) -> bool:
    return bool(tensor.external_data) or tensor.data_location != tensor.DEFAULT
