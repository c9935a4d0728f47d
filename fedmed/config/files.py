"""Reading and writing settings: YAML in, clear errors out.

A wrong setting is reported with its place (file or ``--set``), its key, the value found, what is allowed and the
nearest valid key.
"""

import os
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, JsonValue, Tag, ValidationError
from pydantic_core import ErrorDetails

from fedmed.config import LOCAL_MODEL_OPTIONS, DataConfig, FairConfig, ProxyConfig, RunConfig, ServerStepConfig
from fedmed.config.section import BY_PATH
from fedmed.errors import ConfigError, suggest_nearest

Settings = typing.TypeVar("Settings", bound=BaseModel)
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")
_KINDS: Mapping[str, tuple[str, Any]] = {
    "data": ("source", DataConfig),
    "aggregation.fair": ("kind", FairConfig),
    "fopro.proxy": ("source", ProxyConfig),
    "server_step": ("kind", ServerStepConfig),
}
"""Sections that come in several kinds: their place -> the key that names the kind, and the kinds."""
REMOVED = frozenset({"share_class_counts"})
"""Settings that had no effect: files and run folders of older versions have them, and are opened without. Those of
``client.yaml`` are others."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads ``1e-3`` as a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def read_yaml(path: Path) -> dict[str, JsonValue]:
    """Read a YAML file that holds a mapping.

    Raises
    ------
    ConfigError
        If the file is missing, is no valid YAML or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"The config file '{path}' does not exist. Check the path after --config.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config file '{path}' cannot be read: {error}.") from None
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"The config file '{path}' is no valid YAML: {_describe_yaml_error(error)}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"The config file '{path}' must hold 'key: value' lines, found a {type(content).__name__}.")
    return content


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the settings of a run.

    Parameters
    ----------
    path : Path
        YAML file.
    overrides : sequence of str
        ``"a.b=value"``, applied after the file; the value is read as YAML.

    Returns
    -------
    RunConfig
        With variables expanded and the data's folder made absolute (relative to the working directory).

    Raises
    ------
    ConfigError
        With the file, the key, the value found, what is allowed and the nearest valid key.
    """
    content = read_yaml(path)
    for section in ("loss", "data"):  # --set changes one key of the default here, where others would start empty
        if any(override.startswith(f"{section}.") for override in overrides):
            content.setdefault(section, RunConfig(sites=1).model_dump(mode="json")[section])
    origins = {apply_override(content, override): override for override in overrides}
    config = validate_settings(RunConfig, content, str(path), origins)
    resolve_paths(config, str(path), Path())
    return config


def validate_settings(
    model: type[Settings], content: Mapping[str, JsonValue], source: str, origins: Mapping[str, str] | None = None
) -> Settings:
    """Check settings that were read.

    Parameters
    ----------
    model : type
        The class of settings.
    content : mapping
        What the file holds.
    source : str
        The file, for errors.
    origins : mapping of str to str, optional
        Key -> the ``--set`` it comes from.

    Raises
    ------
    ConfigError
        With the file, the key, the value found, what is allowed and the nearest valid key.
    """
    origins = origins or {}
    removed = REMOVED - model.model_fields.keys() - origins.keys()
    try:
        return model.model_validate({key: value for key, value in content.items() if key not in removed})
    except ValidationError as error:
        raise ConfigError(_describe_all(error, model, source, origins)) from None


def apply_override(content: dict[str, JsonValue], override: str) -> str:
    """Set one dotted key of a nested mapping in place and return the key.

    Raises
    ------
    ConfigError
        If the text is not ``key=value`` or a part of the key is no section.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key or any(not part for part in key.split(".")):
        raise ConfigError(f"--set takes key=value, for example --set training.optimizer.lr=0.01; found '{override}'.")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is no valid YAML: {_describe_yaml_error(error)}.") from None
    *parents, last = key.split(".")
    section = content
    for parent in parents:
        if section.get(parent) is None or section[parent] is False:  # a section that is off by default
            section[parent] = {}
        inside = section[parent]
        if not isinstance(inside, dict):
            raise ConfigError(f"--set {override}: '{parent}' is a value and has no keys inside.")
        section = inside
    section[last] = value
    return key


def dump_config(config: BaseModel) -> str:
    """Return settings as YAML text that :func:`load_run_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def expand_variables(text: str, where: str) -> str:
    """Replace ``${NAME}`` and ``${NAME:-default}`` by environment variables.

    Raises
    ------
    ConfigError
        If a variable without default is not set.
    """

    def replace(match: re.Match[str]) -> str:
        value = os.environ.get(match["name"], match["default"])
        if value is None:
            raise ConfigError(
                f"{where} uses the environment variable {match['name']}, which is not set. "
                f"Set it, or write the folder itself, or give a default: ${{{match['name']}:-/path}}."
            )
        return value

    return _VARIABLE.sub(replace, text)


def resolve_paths(config: Any, source: str, base: Path) -> None:
    """Make the paths in ``data``, ``model`` and ``fopro`` absolute, in place, with variables expanded.

    Parameters
    ----------
    config : FederationConfig or ClientConfig
        Changed in place.
    source : str
        The file, for errors.
    base : Path
        What relative paths are relative to.
    """
    for field in ("root", "file"):
        text = getattr(config.data, field, None)
        if text is not None:
            setattr(config.data, field, resolve_path(text, f"{source}: data.{field}", base))
    fopro = getattr(config, "fopro", None)
    for name, field in (("teacher", "path"), ("proxy", "root")):
        section = getattr(fopro, name, None)
        text = getattr(section, field, None)
        if text is not None:
            setattr(section, field, resolve_path(text, f"{source}: fopro.{name}.{field}", base))
    model = getattr(config, "model", None)
    for option in LOCAL_MODEL_OPTIONS:
        text = model.options.get(option) if model is not None else None
        if isinstance(text, str):
            setattr(model, option, resolve_path(text, f"{source}: model.{option}", base))


def resolve_path(text: str, where: str, base: Path) -> str:
    """Return an absolute path with variables and ``~`` expanded."""
    return os.path.abspath(base / Path(expand_variables(text, where)).expanduser())


def _describe_yaml_error(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem


def _describe_all(error: ValidationError, model: type[BaseModel], source: str, origins: Mapping[str, str]) -> str:
    lines = [_describe_one(details, model, source, origins) for details in error.errors()]
    return "\n".join(dict.fromkeys(lines))


def _describe_one(details: ErrorDetails, model: type[BaseModel], source: str, origins: Mapping[str, str]) -> str:
    loc = [str(part) for part in details["loc"]]
    loc, tag = _split_tag(loc)
    key = ".".join(loc)
    origin = next((f"--set {text}" for name, text in origins.items() if key == name), source)
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = _allowed_keys(model, loc[:-1], tag)
        return (
            f"{origin}: there is no key '{key}' (value found: {details['input']!r})."
            f"{suggest_nearest(loc[-1], allowed)} Allowed here: {', '.join(allowed)}."
        )
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        return f"{origin}: {_describe_wrong_kind(key, context.get('tag', 'nothing'))}"
    if kind == "missing":
        return f"{origin}: the key '{key}' is missing and has no default. Add it."
    if kind == "literal_error":
        expected = str(context.get("expected", ""))
        hint = suggest_nearest(str(details["input"]), re.findall(r"'([^']+)'", expected))
        return f"{origin}: '{key}' is {details['input']!r}.{hint} Allowed: {expected}."
    message = details["msg"].removeprefix("Value error, ")
    if not key:
        return f"{origin}: {message}."
    return f"{origin}: '{key}' is {details['input']!r}. {message}."


def _describe_wrong_kind(key: str, found: object) -> str:
    names = sorted(_sections(key))
    by_path = f" An import path, {BY_PATH}, is allowed as well." if BY_PATH in names else ""
    names = [name for name in names if name != BY_PATH]
    return (
        f"'{key}.{_KINDS[key][0]}' is {found!r}.{suggest_nearest(str(found), names)} "
        f"Allowed: {', '.join(names)}.{by_path}"
    )


def _split_tag(loc: list[str]) -> tuple[list[str], str | None]:
    """Return a place without the name of a section's kind, and that name."""
    for place in _KINDS:
        depth = place.count(".") + 1
        if ".".join(loc[:depth]) == place and len(loc) > depth and loc[depth] in _sections(place):
            return [*loc[:depth], *loc[depth + 1 :]], loc[depth]
    return loc, None


def _allowed_keys(model: type[BaseModel], loc: Sequence[str], tag: str | None) -> list[str]:
    """Return the field names of the section at ``loc``."""
    section = model
    for depth, part in enumerate(loc, start=1):
        if part not in section.model_fields:
            break
        place = ".".join(loc[:depth])
        annotation: Any = section.model_fields[part].annotation
        if place in _KINDS and not _is_section(annotation):
            annotation = next((kind for name, kind in _sections(place).items() if name == tag), None)
        elif not _is_section(annotation):
            annotation = next((kind for kind in typing.get_args(annotation) if _is_section(kind)), None)
        if annotation is None:
            break
        section = annotation
    return sorted(section.model_fields)


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _sections(place: str) -> dict[str, type[BaseModel]]:
    """Return the kinds of a section by name."""
    key, union = _KINDS[place]
    return dict(_tag_kind(kind, key) for kind in typing.get_args(typing.get_args(union)[0]))


def _tag_kind(kind: Any, key: str) -> tuple[str, type[BaseModel]]:
    """Return the name of a kind, which is its tag or the only value of its key, and its class."""
    section, *marks = typing.get_args(kind) or (kind,)
    tags = [mark.tag for mark in marks if isinstance(mark, Tag)]
    return (tags or typing.get_args(section.model_fields[key].annotation))[0], section
