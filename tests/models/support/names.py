"""The networks of the library, without those that other tests and benchmarks register in the same process."""

from fedmed.models import list_models

SHIPPED = [name for name in list_models() if not name.startswith(("tiny", "benchmark_", "frozen_teacher"))]
