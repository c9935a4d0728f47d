import sys
from pathlib import Path

import pytest

from fedmed.errors import ConfigError
from fedmed.registry import Registry


@pytest.fixture
def registry() -> Registry[tuple]:
    made: Registry[tuple] = Registry("thing")

    @made.register("first")
    def build_first(size: int, *, colour: str = "red") -> tuple:
        return size, colour

    @made.register("any")
    def build_any(size: int, **options: object) -> tuple:
        return size, options

    return made


def test_builds_with_options(registry: Registry[tuple]) -> None:
    assert registry.build("first", 3, colour="blue") == (3, "blue")
    assert registry.build("any", 3, whatever=1) == (3, {"whatever": 1})
    assert registry.names() == ["any", "first"]


def test_unknown_name_lists_and_suggests(registry: Registry[tuple]) -> None:
    with pytest.raises(ConfigError, match=r"no thing 'frist'\. Did you mean 'first'\? Allowed: any, first\."):
        registry.build("frist", 3)


def test_unknown_option_lists_and_suggests(registry: Registry[tuple]) -> None:
    with pytest.raises(ConfigError, match=r"'first' has no option 'color'\. Did you mean 'colour'\? Allowed: colour\."):
        registry.build("first", 3, color="blue")


def test_positional_parameters_are_no_options(registry: Registry[tuple]) -> None:
    with pytest.raises(ConfigError, match="has no option 'size'"):
        registry.build("first", size=3)


def test_option_that_python_reserves(registry: Registry[tuple]) -> None:
    @registry.register("reserved")
    def build_reserved(*, global_: bool = True, local: bool = True) -> tuple:
        return global_, local

    assert registry.build("reserved", **{"global": False}) == (False, True)
    for word, guess in (("globl", " Did you mean 'global'?"), ("global_", " Did you mean 'global'?")):
        with pytest.raises(ConfigError) as caught:
            registry.build("reserved", **{word: False})
        assert str(caught.value) == f"The thing 'reserved' has no option '{word}'.{guess} Allowed: global, local."


def test_lazy_builder_is_imported_when_it_is_first_used(registry: Registry[tuple], tmp_path: Path) -> None:
    (tmp_path / "things_built_late.py").write_text("def build(size, *, colour='red'):\n    return size, colour\n")
    registry.register_lazily("late", "things_built_late:build")
    assert registry.names() == ["any", "first", "late"]
    assert "things_built_late" not in sys.modules
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        assert registry.build("late", 3, colour="blue") == (3, "blue")
    with pytest.raises(ConfigError, match=r"'late' has no option 'size'"):
        registry.build("late", size=3)
    with pytest.raises(AssertionError, match="registered twice"):
        registry.register("late")(len)
