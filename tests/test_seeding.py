import os
import subprocess
import sys

import torch

from fedmed.seeding import derive_seed, make_rng, seeded_torch


def test_seed_is_the_digest_of_its_names() -> None:
    import hashlib

    expected = int.from_bytes(hashlib.sha256(b"7\x1fstr:site_01\x1fint:3").digest()[:8], "big") >> 1
    assert derive_seed(7, "site_01", 3) == expected


def test_streams_differ_by_every_part_of_their_name() -> None:
    names = [
        (0, "a", 1),
        (1, "a", 1),
        (0, "b", 1),
        (0, "a", 2),
        (0, "a", "1"),
        (0, "a1"),
        (0, 1, "a"),
        (0, "a", 1, "x"),
    ]
    assert len({derive_seed(*name) for name in names}) == len(names)


def test_seed_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = "from fedmed.seeding import derive_seed; print(derive_seed(5, 'site', 2))"
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": other}, capture_output=True, check=True, text=True
    )
    assert done.stdout == f"{derive_seed(5, 'site', 2)}\n"


def test_seeded_torch_gives_a_stream_and_restores_the_global_one() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded_torch(0, "a"):
        first = torch.rand(3)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    with seeded_torch(0, "a"):
        torch.testing.assert_close(torch.rand(3), first, rtol=0, atol=0)


def test_make_rng_repeats() -> None:
    assert make_rng(3, "x").integers(1 << 60) == make_rng(3, "x").integers(1 << 60)
    assert make_rng(3, "x").integers(1 << 60) != make_rng(3, "y").integers(1 << 60)
