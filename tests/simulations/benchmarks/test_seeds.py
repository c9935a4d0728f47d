"""What benchmarks of several seeds have in common."""

from simulations.benchmarks.seeds import with_interval


def test_interval_by_hand() -> None:
    # Mean 2, deviation 1, three seeds: 4.3027 / sqrt(3) = 2.484.
    assert with_interval([1.0, 2.0, 3.0], "+.2f") == "+2.00 (-0.48 to +4.48)"
    assert with_interval([1.0], "+.2f") == "+1.00 (one seed)"
