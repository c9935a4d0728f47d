import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from fedmed.config import LOCAL_MODEL_OPTIONS
from fedmed.config.addresses import is_loopback, split_address
from fedmed.config.client import ClientConfig, load_client_config
from fedmed.config.files import dump_config
from fedmed.config.server import ServerConfig, load_server_config
from fedmed.data.phantom.cohort import phantom_classes, phantom_site_names
from fedmed.errors import ConfigError
from fedmed.models import list_models

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SERVER, CLIENT = CONFIGS / "server.yaml", CONFIGS / "client.yaml"
REMOVED = object()

Change = Callable[..., Path]


def write_changed(folder: Path, shipped: Path, changes: dict[str, Any]) -> Path:
    content = {**yaml.safe_load(shipped.read_text()), **changes}
    path = folder / shipped.name
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not REMOVED}))
    return path


@pytest.fixture
def refuse_server(tmp_path: Path) -> Callable[..., str]:
    """Return a function that changes the shipped server.yaml and returns the error."""

    def refuse(**changes: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            load_server_config(write_changed(tmp_path, SERVER, changes))
        return str(caught.value)

    return refuse


@pytest.fixture
def refuse_client(tmp_path: Path) -> Callable[..., str]:
    """Return a function that changes the shipped client.yaml and returns the error."""

    def refuse(**changes: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            load_client_config(write_changed(tmp_path, CLIENT, changes))
        return str(caught.value)

    return refuse


def server_with(tmp_path: Path, **changes: Any) -> ServerConfig:
    return load_server_config(write_changed(tmp_path, SERVER, changes))


def client_with(tmp_path: Path, **changes: Any) -> ClientConfig:
    return load_client_config(write_changed(tmp_path, CLIENT, changes))


# What is shipped


def leaf_keys(section: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key, value in section.items():
        found |= leaf_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return found


@pytest.mark.parametrize(
    ("path", "config", "not_there"),
    [
        (SERVER, load_server_config(SERVER), set()),
        (CLIENT, load_client_config(CLIENT), {"data.partition.alpha", "data.partition.min_images"}),
    ],
    ids=["server", "client"],
)
def test_shipped_files_hold_every_setting(path: Path, config: BaseModel, not_there: set[str]) -> None:
    shipped = leaf_keys(yaml.safe_load(path.read_text()))
    everything = leaf_keys(config.model_dump(mode="json"))
    assert everything - shipped == not_there
    assert shipped <= everything


@pytest.mark.parametrize("path", [SERVER, CLIENT], ids=["server", "client"])
def test_shipped_files_explain_every_setting(path: Path) -> None:
    silent = re.findall(r"^ *(\w+): *[^#\s][^#]*$", path.read_text(), flags=re.MULTILINE)
    assert silent == []


def test_shipped_server_has_two_sites_and_the_phantoms_classes() -> None:
    config, client = load_server_config(SERVER), load_client_config(CLIENT)
    assert config.sites == ["hospital_a", "hospital_b"]
    assert client.data.source == "phantom"
    assert tuple(config.classes) == phantom_classes(client.data)
    assert config.data.synthetic
    assert config.model.name in list_models()
    assert config.rounds <= 10
    assert config.listen == config.address == client.server
    assert client.name in config.sites
    assert client.seed == config.seed
    assert client.data_sites == len(config.sites)
    assert client.data_site == phantom_site_names(2)[config.sites.index(client.name)]


def test_the_shipped_servers_expected_statistics_hold_for_the_phantom() -> None:
    from fedmed.data.phantom.cohort import generate_site

    config, client = load_server_config(SERVER), load_client_config(CLIENT)
    assert client.data.source == "phantom"
    small = client.data.model_copy(update={"images_per_site": 40})
    for index in range(4):
        pixels = generate_site(small, index, config.seed).images.float() / 255
        assert config.data.expected_mean is not None
        assert config.data.expected_std is not None
        low, high = config.data.expected_mean
        assert low < float(pixels.mean()) < high
        low, high = config.data.expected_std
        assert low < float(pixels.std()) < high


@pytest.mark.parametrize(
    ("number", "source"), [(0, "image_table"), (1, "class_folders"), (2, "my_package.images:read")]
)
def test_the_examples_in_the_comments_of_client_yaml_load(tmp_path: Path, number: int, source: str) -> None:
    text = CLIENT.read_text()
    examples = re.findall(r"^# data:\n(?:#   .*\n)+", text, flags=re.MULTILINE)
    assert len(examples) == 3
    example = re.sub(r"^# ", "", examples[number], flags=re.MULTILINE)
    own = re.sub(r"^data:.*\n(?:  .*\n)+", lambda match: example, text, count=1, flags=re.MULTILINE)
    own = re.sub(r"^(data_sites?): \S+", r"\1: null", own, flags=re.MULTILINE)
    (tmp_path / "client.yaml").write_text(own)
    config = load_client_config(tmp_path / "client.yaml")
    assert (config.data.source, config.data_site, config.data_sites) == (source, None, None)


def test_the_default_policy_is_the_shipped_one() -> None:
    shipped = load_client_config(CLIENT)
    assert shipped.policy == ClientConfig(name="x", server="h:1", data=shipped.data).policy


def test_round_trip_gives_equal_settings(tmp_path: Path) -> None:
    server, client = load_server_config(SERVER), load_client_config(CLIENT)
    (tmp_path / "server.yaml").write_text(dump_config(server))
    (tmp_path / "client.yaml").write_text(dump_config(client))
    assert load_server_config(tmp_path / "server.yaml") == server
    assert load_client_config(tmp_path / "client.yaml") == client


# Paths


def test_paths_are_relative_to_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = tmp_path / "kit"
    kit.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNS", "/srv/runs")
    server = server_with(kit, keys="../keys", run_dir="${RUNS}/one")
    assert (server.keys, server.run_dir) == (str(tmp_path / "keys"), "/srv/runs/one")
    assert server_with(kit).keys == str(kit)
    client = client_with(kit, ca="/etc/ca.pem", exclude="withdrawn.txt", data={"source": "class_folders", "root": "x"})
    assert (client.ca, client.key, client.exclude) == ("/etc/ca.pem", str(kit / "site.key"), str(kit / "withdrawn.txt"))
    assert client.data.source == "class_folders"
    assert client.data.root == str(kit / "x")


def test_the_name_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client_with(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load_client_config(Path("client.yaml")).state_dir == str(tmp_path / "state")


def test_a_missing_kit_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no '.*client\.yaml'\. Change to the folder of the kit"):
        load_client_config(tmp_path / "client.yaml")
    with pytest.raises(ConfigError, match=r"server\.yaml' does not exist"):
        load_server_config(tmp_path / "server.yaml")


# Addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fedmed.example.org:8443", ("fedmed.example.org", 8443)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses_are_taken_apart(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text, "x") == expected


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", ":8443", "host:0", "host:65536", "host:x", "::1:8443", "https://a:1", "a:1/x", "a b:1"],
)
def test_what_is_no_address_is_refused(text: str, refuse_server: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match=r"x is .* and must be host:port, for example"):
        split_address(text, "x")
    assert f"server.yaml: address is {text!r} and must be host:port" in refuse_server(address=text)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_is_recognised(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "127.0.0.1.example.org"])
def test_other_hosts_are_no_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("listen", ["0.0.0.0:8443", "[::]:8443", "192.0.2.7:8443", "fedmed.example.org:8443"])
def test_a_server_without_tls_listens_on_the_loopback_interface_only(
    tmp_path: Path, refuse_server: Callable[..., str], listen: str
) -> None:
    text = refuse_server(insecure=True, listen=listen)
    assert "insecure: true allows only listen on the loopback interface" in text
    assert listen in text
    assert server_with(tmp_path, listen=listen).listen == listen
    assert server_with(tmp_path, insecure=True).insecure


def test_a_site_without_tls_dials_the_loopback_interface_only(
    tmp_path: Path, refuse_client: Callable[..., str]
) -> None:
    text = refuse_client(insecure=True, server="fedmed.example.org:8443")
    assert "insecure: true allows only server on the loopback interface" in text
    assert client_with(tmp_path, insecure=True, server="localhost:8443").insecure


def test_tls_is_on_unless_somebody_writes_otherwise(tmp_path: Path) -> None:
    assert not server_with(tmp_path, insecure=REMOVED).insecure
    assert not client_with(tmp_path, insecure=REMOVED).insecure


def test_the_health_service_is_on_the_loopback_interface_only(
    tmp_path: Path, refuse_server: Callable[..., str], refuse_client: Callable[..., str]
) -> None:
    for refuse in (refuse_server, refuse_client):
        assert "health on the loopback interface" in refuse(health="0.0.0.0:9000")
        assert "health is 'nowhere' and must be host:port" in refuse(health="nowhere")
    assert client_with(tmp_path, health="127.0.0.1:9000").health == "127.0.0.1:9000"


# The server's settings


def test_a_wrong_key_names_the_file_the_value_and_the_nearest(refuse_server: Callable[..., str]) -> None:
    text = refuse_server(adress="x")
    assert "server.yaml: there is no key 'adress' (value found: 'x'). Did you mean 'address'?" in text
    assert "Did you mean 'expected_mean'?" in refuse_server(data={"expected_means": [0, 1]})
    assert "no key 'study.number'" in refuse_server(study={"number": 1})


def test_a_server_file_of_an_older_version_loads_and_a_sites_own_setting_counts(tmp_path: Path) -> None:
    assert server_with(tmp_path, share_class_counts=True) == server_with(tmp_path)
    assert client_with(tmp_path, share_class_counts=True).share_class_counts


def test_what_belongs_to_a_simulation_is_refused(refuse_server: Callable[..., str]) -> None:
    assert "no key 'workers'" in refuse_server(workers=2)
    assert "'data.source' is 'phantom'. Allowed: 'sites'." in refuse_server(data={"source": "phantom"})


@pytest.mark.parametrize("key", ["address", "sites", "classes"])
def test_what_has_no_default_must_be_there(refuse_server: Callable[..., str], key: str) -> None:
    assert f"the key '{key}' is missing and has no default. Add it." in refuse_server(**{key: REMOVED})


def test_sites_are_different_names_and_enough(refuse_server: Callable[..., str]) -> None:
    assert "sites: a name is given twice" in refuse_server(sites=["a", "b", "a"])
    assert "'sites.1' is '../b'" in refuse_server(sites=["a", "../b"])
    assert "'sites' is []" in refuse_server(sites=[])
    assert "'sites' is 2" in refuse_server(sites=2)


def test_numbers_stay_within_their_bounds(refuse_server: Callable[..., str]) -> None:
    assert "'training.optimizer.lr' is -1. Input should be greater than 0." in refuse_server(
        training={"optimizer": {"lr": -1}}
    )
    assert "'round_deadline_s' is 0" in refuse_server(round_deadline_s=0)
    assert "'link_mbit_s' is 0" in refuse_server(link_mbit_s=0)
    assert "'collect_wait_s' is -1" in refuse_server(collect_wait_s=-1)
    assert "'compression' is 'int16'. Did you mean 'int8'?" in refuse_server(compression="int16")


def test_the_plan_tells_the_study_and_no_file_of_the_server(tmp_path: Path) -> None:
    option = LOCAL_MODEL_OPTIONS[0]
    plan = server_with(
        tmp_path,
        study={"id": "melanoma", "approval": "2026/17"},
        model={"name": "resnet18", option: "secret/weights.pth"},
        data={"image_size": 96, "augmentation": "adsr"},
    ).make_plan()
    assert (plan.study, plan.approval) == ("melanoma", "2026/17")
    assert (plan.image_size, plan.augmentation, plan.model.options) == (96, "adsr", {})
    assert "secret" not in plan.model_dump_json()


# A site's settings


def test_a_password_in_the_proxy_is_refused_and_not_repeated(tmp_path: Path, refuse_client: Callable[..., str]) -> None:
    text = refuse_client(proxy="http://user:hunter2@proxy.example.org:3128")
    assert "proxy must not hold a password; set the environment variable HTTPS_PROXY instead" in text
    assert "hunter2" not in text
    plain = "http://proxy.example.org:3128"
    assert client_with(tmp_path, proxy=plain).proxy == plain


@pytest.mark.parametrize("span", ["", "20:00", "20-06", "24:00-06:00", "20:60-06:00", "8:00-17:00", "20:00 - 06:00"])
def test_hours_that_are_none_are_refused(refuse_client: Callable[..., str], span: str) -> None:
    text = refuse_client(policy={"hours": ["12:00-13:00", span]})
    assert f'{span!r} is no span of times; write for example "20:00-06:00"' in text
    assert "'policy.hours'" in text


def test_hours_may_span_midnight_and_be_several(tmp_path: Path) -> None:
    hours = ["20:00-06:00", "12:30-13:00", "00:00-23:59"]
    assert client_with(tmp_path, policy={"hours": hours}).policy.hours == hours


def test_the_policy_is_closed_and_bounded(refuse_client: Callable[..., str]) -> None:
    assert "Did you mean 'policy'?" in refuse_client(polcy={})
    assert "no key 'policy.max_round'" in refuse_client(policy={"max_round": 3})
    assert "'policy.suppression.k' is 0" in refuse_client(policy={"suppression": {"k": 0}})
    assert "'policy.gpu_share' is 1.5" in refuse_client(policy={"gpu_share": 1.5})
    assert "'policy.models' is 'resnet18'" in refuse_client(policy={"models": "resnet18"})


def test_a_site_must_say_where_its_images_are(refuse_client: Callable[..., str]) -> None:
    assert "the key 'data' is missing" in refuse_client(data=REMOVED)
    sources = "Allowed: class_folders, image_table, npz, phantom."
    assert sources in refuse_client(data={"source": "sites"})
    assert "the key 'data.root' is missing" in refuse_client(data={"source": "image_table"})


def test_a_site_has_a_name_that_can_be_a_folder(refuse_client: Callable[..., str]) -> None:
    for name in ("", "..", "a/b", "a b", "x" * 61):
        assert f"'name' is {name!r}" in refuse_client(name=name)
    assert "'device' is 'gpu'. Did you mean 'cpu'?" in refuse_client(device="gpu")
