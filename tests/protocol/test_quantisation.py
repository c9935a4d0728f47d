import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmed.aggregation import check_update
from fedmed.models import create_model
from fedmed.protocol.quantisation import CompressionError, Kind, compress_update, decompress_update, estimate_bytes
from fedmed.protocol.tensors import pack_tensors
from fedmed.storage.tensor_files import TensorFile, TensorSpec, write_tensors

Tensors = dict[str, torch.Tensor]
KINDS: tuple[Kind, ...] = ("fp16", "int8")
UNIT = 2.0**-24  # relative rounding of float32
both_kinds = pytest.mark.parametrize("kind", KINDS)


def make_model(seed: int, scale: float = 1.0) -> Tensors:
    """Tensors of all sorts; the compressed ones are 'block' (exactly one), 'ragged' and 'channels_last'."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"bias": (2000,), "block": (32, 32), "ragged": (53, 61), "channels_last": (40, 8, 3, 3), "small": (31, 33)}
    tensors = {name: scale * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    tensors["channels_last"] = tensors["channels_last"].to(memory_format=torch.channels_last)
    count = torch.tensor(10 + seed)
    return tensors | {"count": count, "table": torch.full((64, 64), seed), "empty": torch.zeros(0, 2000)}


def add(left: Tensors, right: Tensors) -> Tensors:
    return {name: tensor + right[name] for name, tensor in left.items()}


class Server:
    """Restores what a site has sent against one global model."""

    def __init__(self, folder: Path, reference: Tensors) -> None:
        self.folder = folder
        self.packed, self.target = folder / "packed", folder / "target"
        (folder / "reference").write_bytes(pack_tensors(reference))
        self.reference = TensorFile(folder / "reference")

    def restore(self, packed: bytes, window: int = 2048) -> Tensors:
        self.packed.write_bytes(packed)
        decompress_update(self.packed, self.reference, self.target, window)
        return {name: torch.from_numpy(array) for name, array in TensorFile(self.target).load_all().items()}


def rewrite(packed: bytes, folder: Path, **changes: np.ndarray | None) -> bytes:
    """Exchange, drop (None) or add tensors of a packed update."""
    path = folder / "rewritten"
    path.write_bytes(packed)
    file = TensorFile(path)
    arrays = {name: array for name, array in (file.load_all() | changes).items() if array is not None}
    write_tensors(path, arrays, file.metadata)
    return path.read_bytes()


def rename_metadata(packed: bytes, old: str, new: str) -> bytes:
    assert len(old) == len(new)
    assert packed.count(old.encode()) == 1
    return packed.replace(old.encode(), new.encode())


@both_kinds
@pytest.mark.parametrize("window", [1, 1024, 3000, 1 << 18])
def test_server_restores_the_bits_that_the_site_saw(tmp_path: Path, kind: Kind, window: int) -> None:
    """The residual was formed from the site's view, so (new - restored) + residual is it, bit for bit."""
    reference, old = make_model(0), make_model(2, 1e-4)
    new = add(reference, make_model(1, 1e-2))
    residual = {name: old[name] for name in ("block", "ragged", "channels_last")}
    packed, left = compress_update(new, reference, residual, kind)
    restored = Server(tmp_path, reference).restore(packed, window)
    assert set(left) == set(residual)
    for name, tensor in new.items():
        if name in residual:
            assert torch.equal((tensor - restored[name]) + residual[name], left[name])
            assert not torch.equal(tensor, restored[name])
        else:
            assert torch.equal(tensor, restored[name])
            assert tensor.dtype == restored[name].dtype
    assert check_update(tmp_path / "target", TensorFile(tmp_path / "reference")).ok


@both_kinds
def test_file_is_what_is_documented(tmp_path: Path, kind: Kind) -> None:
    """Reference + value * scale of its block in float32, computed here from the file without our code."""
    reference = make_model(0)
    packed, _ = compress_update(add(reference, make_model(1, 1e-2)), reference, {}, kind)
    restored = Server(tmp_path, reference).restore(packed)
    file = TensorFile(tmp_path / "packed")
    assert file.metadata == {"block": "1024", "compression": kind}
    for name in ("block", "ragged", "channels_last"):
        values, scales = file.load(name), file.load(f"scale/{name}")
        assert values.dtype == {"fp16": np.float16, "int8": np.int8}[kind]
        assert scales.shape == (-(-values.size // 1024),)
        change = [np.float32(v) * scales[i // 1024] for i, v in enumerate(values.reshape(-1).tolist())]
        expected = reference[name].numpy() + np.array(change, np.float32).reshape(values.shape)
        assert np.array_equal(expected, restored[name].numpy())


def test_int8_by_hand() -> None:
    """Largest change 127 gives scale 1: halves go to the even neighbour and stay in the residual."""
    change = torch.zeros(1, 1024)
    change[0, :6] = torch.tensor([127.0, -127.0, 0.5, 1.5, -2.5, 3.25])
    _, left = compress_update({"w": change}, {"w": torch.zeros(1, 1024)}, {}, "int8")
    assert left["w"][0, :7].tolist() == [0.0, 0.0, 0.5, -0.5, -0.5, 0.25, 0.0]


@both_kinds
@pytest.mark.parametrize("magnitude", [1e-24, 1e-12, 1.0, 1e5, 1e30])
def test_rounding_error_is_bounded_at_every_magnitude(kind: Kind, magnitude: float) -> None:
    """float16 alone holds 6e-8 … 65504. Half a scale for int8; 11 bits, or half the smallest step, for fp16."""
    change = magnitude * torch.randn(7, 1024, generator=torch.Generator().manual_seed(3))
    _, left = compress_update({"w": change}, {"w": torch.zeros_like(change)}, {}, kind)
    largest = change.abs().amax(1, keepdim=True)
    # The quotient and the product round as well: 127 steps of 2**-24 each.
    int8_bound = largest / 127 * (0.5 + 2 * 127 * UNIT) * torch.ones_like(change)
    fp16_bound = torch.maximum(change.abs() * 2**-11, largest * 2**-39)
    assert (left["w"].abs() <= (int8_bound if kind == "int8" else fp16_bound)).all()


@both_kinds
def test_zero_and_vanishing_changes(tmp_path: Path, kind: Kind) -> None:
    """What is too small for a scale waits in the residual, also beside a block that is not."""
    reference = {"w": torch.zeros(3, 1024)}
    new = {"w": torch.cat([torch.zeros(1, 1024), torch.full((1, 1024), 1e-41), torch.ones(1, 1024)])}
    packed, left = compress_update(new, reference, {}, kind)
    restored = Server(tmp_path, reference).restore(packed)["w"]
    assert restored[:2].count_nonzero() == 0
    assert torch.equal(restored + left["w"], new["w"])
    torch.testing.assert_close(restored[2], new["w"][2])


@both_kinds
def test_nothing_is_lost_over_rounds(tmp_path: Path, kind: Kind) -> None:
    """Sent changes + last residual = true changes.

    One round: d = fl(new - view), r' = fl(d + r), so (view - reference) + r' differs from (new - reference) + r by two
    roundings, at most UNIT (|new - view| + |r'|) with the exact difference, up to a factor 1 + UNIT. Rounds add up.
    """
    reference = {"w": make_model(0)["ragged"]}
    residual: Tensors = {}
    balance = torch.zeros(53, 61, dtype=torch.float64)
    bound = torch.zeros_like(balance)
    for number in range(1, 21):
        new = {"w": reference["w"] + make_model(number, 1e-2)["ragged"]}
        packed, residual = compress_update(new, reference, residual, kind)
        view = Server(tmp_path, reference).restore(packed)
        balance += (new["w"].double() - reference["w"].double()) - (view["w"].double() - reference["w"].double())
        bound += UNIT * ((new["w"].double() - view["w"].double()).abs() + residual["w"].double().abs()) * (1 + 1e-6)
        reference = view
    missing = (balance - residual["w"].double()).abs()
    assert (missing <= bound).all()
    assert bound.max() < 1e-9  # against changes of 1e-2, of which 20 were summed


def run_quadratic(folder: Path, *, feedback: bool) -> torch.Tensor:
    """Federated averaging of two sites, int8; a site's round is x <- x + (optimum - x) / 20.

    The sites pull element 0 by +-10 and agree on 0.03 for all others, so the mean of the optima is the solution.
    """
    optimum = torch.full((2, 1024), 0.03)
    optima = [optimum.clone(), optimum.clone()]
    optima[0][0, 0], optima[1][0, 0] = 10.03, -9.97
    optima[0][1, 0], optima[1][1, 0] = -9.97, 10.03
    x = torch.zeros(2, 1024)
    residuals: list[Tensors] = [{}, {}]
    for _ in range(300):
        server, views = Server(folder, {"x": x}), []
        for site, target in enumerate(optima):
            new = {"x": x + (target - x) / 20}
            packed, left = compress_update(new, {"x": x}, residuals[site] if feedback else {}, "int8")
            residuals[site] = left
            views.append(server.restore(packed)["x"])
        x = (views[0] + views[1]) / 2
    return x


def test_error_feedback_reaches_the_solution_that_rounding_misses(tmp_path: Path) -> None:
    """The step of a block is s = (10 / 20) / 127 = 0.0039.

    Without feedback a change below s / 2 is never sent, so elements within 20 s / 2 = 0.039 of their optimum never
    move: from 0 to 0.03 nothing happens at all. With it, y = x + mean residual obeys y' - x* = (1 - 1/20)(y - x*) +
    residual / 20: |y - x*| tends to at most max|residual| = s / 2, and |x - x*| to at most s. The start has faded to
    0.03 * 0.95**300 < 1e-8; 1 % is left for s itself, which moves with element 0.
    """
    step = 0.5 / 127
    plain, fed_back = (run_quadratic(tmp_path, feedback=feedback) for feedback in (False, True))
    assert plain[:, 1:].count_nonzero() == 0
    assert (fed_back - 0.03).abs().max() <= 1.01 * step


@both_kinds
def test_size_is_predicted_to_the_byte(tmp_path: Path, kind: Kind) -> None:
    reference = make_model(0)
    packed, _ = compress_update(make_model(1), reference, {}, kind)
    assert estimate_bytes(Server(tmp_path, reference).reference.layout, kind) == len(packed)


@both_kinds
def test_adsr_net_18_shrinks_as_promised(kind: Kind) -> None:
    state = create_model("adsr_resnet18", 5).state_dict()
    layout = {name: TensorSpec(tuple(t.shape), np.dtype(str(t.dtype).split(".")[1])) for name, t in state.items()}
    share = estimate_bytes(layout, kind) / len(pack_tensors(state))
    low, high = {"int8": (0.25, 0.26), "fp16": (0.50, 0.505)}[kind]
    assert low <= share <= high


@both_kinds
def test_equal_inputs_give_equal_bytes(kind: Kind) -> None:
    reference, new = make_model(0), make_model(1)
    shuffled = dict(reversed(new.items()))
    assert compress_update(new, reference, {}, kind)[0] == compress_update(shuffled, reference, {}, kind)[0]


@both_kinds
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_diverged_training_is_named_at_the_site(kind: Kind, value: float) -> None:
    new = make_model(1)
    new["ragged"][3, 4] = value
    with pytest.raises(CompressionError, match=r"'ragged' holds NaN or an infinite value: training diverged"):
        compress_update(new, make_model(0), {}, kind)


@both_kinds
def test_change_beyond_float32_is_refused(kind: Kind) -> None:
    with pytest.raises(CompressionError, match="infinite"):
        compress_update({"w": torch.full((32, 32), 3e38)}, {"w": torch.full((32, 32), -3e38)}, {}, kind)


def test_mappings_of_different_models_are_refused() -> None:
    model = make_model(0)
    short = {name: tensor for name, tensor in model.items() if name != "block"}
    for new, reference, residual in [
        (model, short, {}),
        (short, model, {}),
        (model, model, {"bias": model["bias"]}),
        (model, model, {"block": torch.zeros(1024)}),
    ]:
        with pytest.raises(ValueError, match="do not have the same names"):
            compress_update(new, reference, residual, "int8")
    with pytest.raises(ValueError, match="'none'; allowed are 'fp16', 'int8'"):
        compress_update(model, model, {}, "none")  # type: ignore[arg-type]


def refuse(server: Server, packed: bytes) -> str:
    """Return the text of the refusal, which may be told to the site and so names no file."""
    with pytest.raises(CompressionError) as caught:
        server.restore(packed)
    assert not server.target.exists()
    assert str(server.folder) not in str(caught.value)
    assert caught.value.shareable
    assert len(str(caught.value)) < 1000
    return str(caught.value)


@both_kinds
def test_malformed_updates_are_refused(tmp_path: Path, kind: Kind) -> None:
    reference = make_model(0)
    server = Server(tmp_path, reference)
    packed, _ = compress_update(make_model(1), reference, {}, kind)
    width = {"fp16": "float16", "int8": "int8"}[kind]
    scales = np.ones(4, np.float32)
    for changes, text in [
        ({"ragged": None}, rf"Tensor 'ragged' of the compressed update is absent and should be {width} (53, 61)"),
        ({"scale/ragged": None}, "'scale/ragged' of the compressed update is absent and should be float32 (4,)"),
        ({"more": scales}, "Tensor 'more' of the compressed update is float32 (4,) and should be absent"),
        ({"n" * 5000: scales}, "nnn… of the compressed update"),
        ({"scale/ragged": scales[:3]}, "is float32 (3,) and should be float32 (4,); 1 of 11 tensors differ"),
        ({"block": np.zeros((32, 32), np.float32)}, f"is float32 (32, 32) and should be {width} (32, 32)"),
        ({"scale/ragged": scales * np.float32(np.nan)}, "A scale of tensor 'ragged'"),
        ({"scale/ragged": scales * np.float32(np.inf)}, "A scale of tensor 'ragged'"),
        ({"scale/ragged": -scales}, "A scale of tensor 'ragged'"),
        ({"scale/ragged": scales * np.float32(3e38)}, "'ragged' of the compressed update is not finite"),
    ]:
        assert text in refuse(server, rewrite(packed, tmp_path, **changes))
    for broken in (b"", packed[:-1], packed[:100], packed + b"\0", b"\xff" * 64):
        assert "damaged or cut off and should be sent again" in refuse(server, broken)
    assert "of kind 'int4' in" in refuse(
        server, rename_metadata(packed, f'"compression":"{kind}"', '"compression":"int4"')
    )
    assert "blocks of '2048'" in refuse(server, rename_metadata(packed, '"block":"1024"', '"block":"2048"'))
    assert "of kind None" in refuse(server, pack_tensors(make_model(1)))


def test_half_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    reference = make_model(0)
    packed, _ = compress_update(make_model(1), reference, {}, "fp16")
    bad = np.full((32, 32), np.nan, np.float16)
    assert "'block'" in refuse(Server(tmp_path, reference), rewrite(packed, tmp_path, block=bad))


def test_damaged_truth_values_are_refused(tmp_path: Path) -> None:
    reference = {"mask": torch.ones(4, dtype=torch.bool)}
    packed, _ = compress_update(reference, reference, {}, "int8")
    assert "'mask'" in refuse(Server(tmp_path, reference), packed[:-1] + b"\2")


@both_kinds
def test_random_damage_never_gives_another_error(tmp_path: Path, kind: Kind) -> None:
    reference = make_model(0)
    server, draw = Server(tmp_path, reference), np.random.default_rng(0)
    packed, _ = compress_update(make_model(1), reference, {}, kind)
    head = 8 + int.from_bytes(packed[:8], "little")
    refused = 0
    for number in range(200):
        damaged = bytearray(packed)
        damaged[draw.integers(head if number % 2 else len(packed))] = draw.integers(256)
        try:
            server.restore(bytes(damaged))
        except CompressionError:
            refused += 1
    assert refused > 50


def test_memory_is_a_few_windows(tmp_path: Path) -> None:
    """A tensor of 16 MiB is restored in windows of 0.25 MiB."""
    import tracemalloc

    reference = {"w": torch.zeros(2048, 2048)}
    server = Server(tmp_path, reference)
    packed, _ = compress_update({"w": torch.ones(2048, 2048)}, reference, {}, "int8")
    server.packed.write_bytes(packed)
    tracemalloc.start()
    try:
        decompress_update(server.packed, server.reference, server.target, 1 << 16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20 + 2**19


def test_any_reader_opens_the_packed_file() -> None:
    import safetensors.numpy

    reference = make_model(0)
    packed, _ = compress_update(make_model(1), reference, {}, "int8")
    header = json.loads(packed[8 : 8 + int.from_bytes(packed[:8], "little")])
    assert header["__metadata__"]["compression"] == "int8"
    assert set(safetensors.numpy.load(packed)) == set(reference) | {
        "scale/block",
        "scale/ragged",
        "scale/channels_last",
    }
