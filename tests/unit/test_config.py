"""Configuration: each rule of config.toml and the environment, and that no error tells a value."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service import config
from service.auth.keys import load_key
from service.config import Config, load, read
from service.errors import ConfigError
from tests.conftest import ROOT, SECRET

GOOD = {"AUTH_SECRET": SECRET, "DATABASE_URL": "postgresql://db.example/events"}
RS = {"AUTH_ALGORITHMS": "RS256", "DATABASE_URL": "postgresql://db.example/events"}
MARKER = "tell-nobody-7f3a"


def environ(**variables: str) -> dict[str, str]:
    """Variables, named without the prefix."""
    return {f"SYSTEMEVENT_{name}": value for name, value in variables.items()}


def refusal(file: Path | None, variables: Mapping[str, str]) -> str:
    """What a configuration is refused with, if not by load then by what reads the key files."""
    with pytest.raises(ConfigError) as caught:
        load_key(load(str(file) if file else None, environ(**variables)).auth)
    return str(caught.value)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A file to write a configuration into."""
    return tmp_path / "some.toml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no config.toml, unless a test makes one."""
    monkeypatch.chdir(tmp_path)


# What is read, and from where


def test_the_file_in_the_repository_states_the_defaults() -> None:
    """config.toml names every key but the secrets, each with the default of the code."""
    stated = tomllib.loads((ROOT / "config.toml").read_text())
    defaults = msgspec.to_builtins(Config())
    del defaults["auth"]["secret"], defaults["auth"]["previous_secret"]
    assert stated == defaults
    assert list(stated) == list(defaults)
    for section, keys in stated.items():
        for key, value in keys.items():
            assert type(value) is type(defaults[section][key]), f"{section}.{key}"


def test_without_a_file_the_defaults_hold() -> None:
    """./config.toml may be missing."""
    assert read(None, {}) == Config()


def test_a_file_in_the_current_folder_is_found() -> None:
    """Without --config, ./config.toml is read; unnamed keys keep their defaults."""
    Path("config.toml").write_text("[server]\nport = 9000\n")
    assert read(None, {}).server == config.Server(port=9000)


def test_the_environment_overrides_the_file(toml: Path) -> None:
    """A variable beats the file, key by key."""
    toml.write_text('[server]\nport = 9000\nhost = "a.example"\n')
    loaded = read(str(toml), environ(SERVER_PORT="9001"))
    assert loaded.server == config.Server(port=9001, host="a.example")


def test_the_environment_of_others_is_none_of_ours() -> None:
    """Only variables with the prefix are read."""
    assert read(None, {"SERVER_PORT": "1", "systemevent_server_port": "1", "PATH": "/"}) == Config()


@pytest.mark.parametrize("service", ["SYSTEMEVENT", "SYSTEMEVENT_READ", "SYSTEMEVENT_SERVER"])
def test_links_of_kubernetes_are_none_of_ours(service: str) -> None:
    """They are set for each Service of the namespace, whatever it is named."""
    links = {
        "SERVICE_HOST": "10.0.0.11",
        "SERVICE_PORT": "8080",
        "SERVICE_PORT_HTTP": "8080",
        "PORT": "tcp://10.0.0.11:8080",
        "PORT_8080_TCP": "tcp://10.0.0.11:8080",
        "PORT_8080_TCP_PROTO": "tcp",
        "PORT_8080_TCP_PORT": "8080",
        "PORT_8080_TCP_ADDR": "10.0.0.11",
        "PORT_53_UDP": "udp://10.0.0.11:53",
    }
    assert read(None, {f"{service}_{name}": value for name, value in links.items()}) == Config()


@pytest.mark.parametrize("name", ["SYSTEMEVENT_READ_PORT", "SYSTEMEVENT_SERVICE_PROT"])
def test_what_only_looks_like_a_link_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no such key"):
        read(None, {name: "8080"})


KEYS = [
    (section, key)
    for section in Config.__struct_fields__
    for key in type(getattr(Config(), section)).__struct_fields__
]


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_every_key_has_a_variable(section: str, key: str) -> None:
    """SYSTEMEVENT_<SECTION>_<KEY> sets each key, to what the file would set it to."""
    default = getattr(getattr(Config(), section), key)
    others = {
        "auth.algorithms": ["HS512", "HS256"],
        "auth.secret": SECRET,
        "cors.origins": ["https://a.example", "http://localhost:3000"],
        "database.url": GOOD["DATABASE_URL"],
        "limits.body_deadline": 9.5,
        "logging.format": "text",
        "logging.level": "debug",
        "server.max_header_size": 20_000,
    }
    kinds = {bool: True, int: 7, float: 30.5, str: "other", list: ["a", "b"]}
    value = others.get(f"{section}.{key}", kinds[type(default)])
    text = ",".join(value) if isinstance(value, list) else str(value)
    variables = environ(**{f"{section}_{key}".upper(): text})
    assert getattr(getattr(read(None, variables), section), key) == value


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("", []),
        (",", []),
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        (" a , b ,, ", ["a", "b"]),
        ("https://id.example/x?y=z", ["https://id.example/x?y=z"]),
    ],
)
def test_lists_are_separated_by_commas(text: str, items: list[str]) -> None:
    """In the environment; blanks around items, and empty ones, are dropped."""
    assert read(None, environ(AUTH_AUDIENCE=text)).auth.audience == items


# What is refused

RANGES = {
    "server.port": (-1, 65536),
    "server.workers": (0, 65),
    "server.keepalive": (0, 3601),
    "server.drain": (-0.1, 301),
    "server.max_header_size": (1023, 65_537),
    "admin.port": (-1, 65536),
    "database.pool_size": (0, 101),
    "database.read_lag": (1.9, 3601),
    "database.statement_timeout": (0, 3601),
    "database.connect_timeout": (0, 3601),
    "database.statement_cache_size": (-1, 1001),
    "auth.jwks_max_age": (9, 604_801),
    "auth.leeway": (-1, 61),
    "auth.cache_size": (0, 1_000_001),
    "limits.max_ids": (0, 100_001),
    "limits.max_scan": (-1, 1_000_000_001),
    "limits.max_count": (0, 1_000_000_001),
    "limits.deadline": (0, 3601),
    "limits.body_deadline": (0, 3601),
    "commit.in_flight": (0, 65),
    "commit.max_requests": (0, 1_000_001),
    "commit.max_ids": (0, 1_000_001),
    "commit.max_queue": (0, 1_000_001),
}


def test_every_number_has_bounds() -> None:
    """The table of bounds above names every number there is."""
    numbers = {
        f"{section}.{key}"
        for section, key in KEYS
        if type(getattr(getattr(Config(), section), key)) in (int, float)
    }
    assert numbers == RANGES.keys()


@pytest.mark.parametrize(("name", "bounds"), RANGES.items())
def test_a_number_out_of_bounds(name: str, bounds: tuple[int, int], toml: Path) -> None:
    """A number too small or too large is refused, in the file and in the environment."""
    section, key = name.split(".")
    for value in bounds:
        toml.write_text(f"[{section}]\n{key} = {value}\n")
        assert refusal(toml, {}).startswith(f"{name}: Expected `")
        assert refusal(None, {name.replace(".", "_").upper(): str(value)}).startswith(f"{name}: ")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(
    "name", [name for name in RANGES if "timeout" in name or "dead" in name or "lee" in name]
)
def test_a_number_that_is_none(name: str, text: str, toml: Path) -> None:
    """NaN and infinity are within no bounds."""
    section, key = name.split(".")
    assert refusal(None, {name.replace(".", "_").upper(): text}).startswith(f"{name}: ")
    toml.write_text(f"[{section}]\n{key} = {text}\n")
    assert refusal(toml, {}).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[server]\nprot = 1", "server.prot: no such key"),
        ("[sever]\nport = 1", "sever: no such key"),
        ("[server.port]\nx = 1", "server.port: Expected `int`"),
        ('[server]\nport = "9000"', "server.port: Expected `int`"),
        ("[server]\nport = 9000.5", "server.port: Expected `int`"),
        ("[server]\nport = true", "server.port: Expected `int`"),
        ("[server]\nport = 1979-05-27", "server.port: Expected `int`"),
        ("[server]\nhost = 1", "server.host: Expected `str`"),
        ('[limits]\ndeadline = "10"', "limits.deadline: Expected `float`"),
        ('[auth]\nalgorithms = "HS256"', "auth.algorithms: Expected `array`"),
        ("[auth]\nalgorithms = [1]", "auth.algorithms[0]: Expected `str`"),
        ('[auth]\nalgorithms = ["none"]', "auth.algorithms[0]: not one of the values allowed"),
        ('[auth]\naudience = "bell"', "auth.audience: Expected `array`"),
        ('[auth]\nuser_claim = ""', "auth.user_claim: Expected `str` of length >= 1"),
        ('[logging]\nlevel = "INFO"', "logging.level: not one of the values allowed"),
        ('[logging]\nformat = "xml"', "logging.format: not one of the values allowed"),
        ("port = 1", "port: expected a section, [port]"),
        ('server = "x"', "server: expected a section, [server]"),
        ("[[server]]\nport = 1", "server: expected a section, [server]"),
        (f'[auth]\nprevious_secret = "{SECRET}"', "auth.previous_secret: a secret does not"),
        (f'[auth]\nsecret = "{SECRET}"', "auth.secret: a secret does not belong into a file"),
        ('[auth]\nsecret = ""', "auth.secret: a secret does not belong into a file"),
        ("[server]\nport = ", "not valid TOML"),
        ("[server]\nport = 1\nport = 2", "not valid TOML"),
        ("\x00", "not valid TOML"),
    ],
)
def test_a_file_refused(text: str, name: str, toml: Path) -> None:
    """What is unknown or ill-typed in the file is refused by its name."""
    toml.write_text(text)
    assert name in refusal(toml, GOOD)


def test_a_file_that_is_no_text(toml: Path) -> None:
    """A file that is not UTF-8 is refused by its path."""
    toml.write_bytes(b'[server]\nhost = "\xff"\n')
    assert refusal(toml, {}).startswith(f"{toml}: ")


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    """--config with a path that leads nowhere is refused; so is a folder."""
    assert refusal(tmp_path / "no.toml", {}) == f"{tmp_path / 'no.toml'}: no such file"
    assert refusal(tmp_path, {}) == f"{tmp_path}: Is a directory"


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"SERVER_PROT": "1"}, "SYSTEMEVENT_SERVER_PROT: no such key, server.prot"),
        ({"SEVER_PORT": "1"}, "SYSTEMEVENT_SEVER_PORT: no such key, sever.port"),
        ({"SERVER": "1"}, "SYSTEMEVENT_SERVER: no such key"),
        ({"": "1"}, "SYSTEMEVENT_: no such key"),
        ({"SERVER__PORT": "1"}, "SYSTEMEVENT_SERVER__PORT: no such key"),
        ({"SERVER_PORT": "eighty"}, "server.port: Expected `int`"),
        ({"SERVER_PORT": ""}, "server.port: Expected `int`"),
        ({"SERVER_PORT": "80.5"}, "server.port: Expected `int`"),
        ({"SERVER_PORT": "true"}, "server.port: Expected `int`"),
        ({"LIMITS_DEADLINE": "soon"}, "limits.deadline: Expected `float`"),
        ({"AUTH_ALGORITHMS": "HS256,none"}, "auth.algorithms: not one of the values allowed"),
        ({"AUTH_ALGORITHMS": "hs256"}, "auth.algorithms: not one of the values allowed"),
        ({"AUTH_ALGORITHMS": ""}, "auth.algorithms: at least one"),
        ({"AUTH_ALGORITHMS": "HS256,RS256"}, "auth.algorithms: HS (a secret) and the others"),
        ({"AUTH_ALGORITHMS": "RS256"}, "auth.secret: does not fit auth.algorithms"),
        ({"AUTH_USER_CLAIM": ""}, "auth.user_claim: Expected `str` of length >= 1"),
        ({"LOGGING_LEVEL": "trace"}, "logging.level: not one of the values allowed"),
        ({"AUTH_SECRET": "x" * 31}, "auth.secret: shorter than 32 bytes"),
        ({"AUTH_SECRET": ""}, "auth.secret: missing; set SYSTEMEVENT_AUTH_SECRET"),
        ({"AUTH_PREVIOUS_SECRET": "x" * 31}, "auth.previous_secret: shorter than 32 bytes"),
        ({"AUTH_SECRET": "", "AUTH_PREVIOUS_SECRET": SECRET}, "auth.secret: missing"),
        ({"AUTH_SECRET_FILE": "secret"}, "auth.secret_file: contradicts auth.secret"),
        ({"AUTH_JWKS_URL": "https://x.example"}, "auth.jwks_url: contradicts auth.secret"),
        ({"AUTH_PUBLIC_KEY_FILE": "x.pem"}, "auth.public_key_file: contradicts auth.secret"),
        ({"DATABASE_URL": ""}, "database.url: missing; set SYSTEMEVENT_DATABASE_URL"),
        ({"DATABASE_URL": "mysql://db.example/x"}, "database.url: not a postgresql:// URL"),
        ({"DATABASE_URL": "host=db.example"}, "database.url: not a postgresql:// URL"),
        ({"DATABASE_URL": "POSTGRESQL://db/x"}, "database.url: not a postgresql:// URL"),
        ({"DATABASE_READ_URL": "host=db"}, "database.read_url: not a postgresql:// URL"),
        (
            {"DATABASE_STATEMENT_CACHE_SIZE": "4"},
            "database.statement_cache_size: 0, or 5 and more",
        ),
        (
            {"LIMITS_DEADLINE": "2", "LIMITS_BODY_DEADLINE": "3"},
            "limits.body_deadline: longer than limits.deadline",
        ),
    ],
)
def test_an_environment_refused(variables: dict[str, str], name: str) -> None:
    """What is unknown, ill-typed, missing or contradictory is refused by its name."""
    assert refusal(None, GOOD | variables).startswith(name)


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "auth.jwks_url: missing; set SYSTEMEVENT_AUTH_JWKS_URL, or auth.public_key_file"),
        ({"AUTH_JWKS_URL": "ftp://x.example"}, "auth.jwks_url: not an http or https URL"),
        ({"AUTH_JWKS_URL": "keys.example"}, "auth.jwks_url: not an http or https URL"),
        ({"AUTH_JWKS_URL": "http://keys.example/"}, "auth.jwks_url: http to another host"),
        ({"AUTH_JWKS_URL": "http://127.0.0.1.example/"}, "auth.jwks_url: http to another host"),
        ({"AUTH_JWKS_URL": "http://localhost@keys.example/"}, "auth.jwks_url: http to another"),
        ({"AUTH_CLIENTS": "a", "AUTH_JWKS_URL": "https://x.example"}, "auth.client_claim: missing"),
        ({"AUTH_CLIENT_CLAIM": "azp", "AUTH_JWKS_URL": "https://x.example"}, "auth.clients: miss"),
        ({"AUTH_JWKS_URL": "https://"}, "auth.jwks_url: "),
        ({"AUTH_JWKS_URL": "https://x.example:port/"}, "auth.jwks_url: "),
        ({"AUTH_SECRET_FILE": "secret"}, "auth.secret_file: does not fit auth.algorithms"),
        ({"AUTH_PUBLIC_KEY_FILE": "no.pem"}, "auth.public_key_file: No such file"),
        ({"AUTH_PUBLIC_KEY_FILE": "."}, "auth.public_key_file: Is a directory"),
        ({"AUTH_PUBLIC_KEY_FILE": "junk.pem"}, "auth.public_key_file: not a public key in PEM"),
        ({"AUTH_PUBLIC_KEY_FILE": "ec.pem"}, "auth.public_key_file: the key does not fit"),
        ({"AUTH_PUBLIC_KEY_FILE": "small.pem"}, "auth.public_key_file: the key does not fit"),
        (
            {"AUTH_PUBLIC_KEY_FILE": "ec.pem", "AUTH_ALGORITHMS": "ES384,EdDSA"},
            "auth.public_key_file: the key does not fit",
        ),
        (
            {"AUTH_ALGORITHMS": "HS256", "AUTH_PUBLIC_KEY_FILE": "ec.pem"},
            "auth.public_key_file: does not fit auth.algorithms",
        ),
        (
            {"AUTH_ALGORITHMS": "HS256", "AUTH_SECRET_FILE": "no.txt"},
            "auth.secret_file: No such file",
        ),
        (
            {"AUTH_ALGORITHMS": "HS256", "AUTH_SECRET_FILE": "short.txt"},
            "auth.secret_file: shorter than 32 bytes",
        ),
        (
            {"AUTH_ALGORITHMS": "HS256", "AUTH_SECRET_FILE": "blank.txt"},
            "auth.secret_file: shorter than 32 bytes",
        ),
        (
            {"AUTH_PUBLIC_KEY_FILE": "ec.pem", "AUTH_JWKS_URL": "https://x.example"},
            "auth.jwks_url: contradicts auth.public_key_file",
        ),
    ],
)
def test_keys_refused(variables: dict[str, str], name: str) -> None:
    """Key files and URLs that cannot be used are refused by the key that names them."""
    small = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505 - so it is refused
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    for file, key in (("small.pem", small), ("ec.pem", curve)):
        Path(file).write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    Path("junk.pem").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    Path("short.txt").write_text("x" * 31 + "\n")
    Path("blank.txt").write_text(" " * 100)
    assert refusal(None, RS | variables).startswith(name)


@pytest.mark.parametrize(
    "name", ["auth.secret", "auth.algorithms", "auth.secret_file", "server.port", "logging.level"]
)
def test_a_variable_that_is_no_text(name: str) -> None:
    """Bytes that are not UTF-8, as of a secret drawn at random, are refused by the key's name."""
    value = os.fsdecode(b"\xff" * 32)
    assert refusal(None, {name.replace(".", "_").upper(): value}).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("url", "flag"),
    [
        ("http://127.0.0.1:8000/keys", "false"),
        ("http://LOCALHOST/keys", "false"),
        ("http://[::1]:8000/keys", "false"),
        ("https://keys.example/", "false"),
        ("http://keys.example/", "true"),
    ],
)
def test_http_for_keys(url: str, flag: str) -> None:
    """A key set comes over https, from loopback, or as a flag allows."""
    variables = {"AUTH_JWKS_URL": url, "AUTH_JWKS_ALLOW_HTTP": flag}
    assert load(None, environ(**RS | variables)).auth.jwks_url == url


def test_a_file_may_name_one_issuer(tmp_path: Path) -> None:
    """Without brackets, as before there could be several."""
    file = tmp_path / "one.toml"
    file.write_text('[auth]\nissuer = "https://id.example/"')
    assert read(str(file), {}).auth.issuers == ["https://id.example/"]


def test_a_secret_counts_in_bytes() -> None:
    """16 characters of two bytes each are long enough."""
    assert load(None, environ(**GOOD | {"AUTH_SECRET": "\u00e9" * 16})).auth.secret == "\u00e9" * 16


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://*.example",
        "https://app.example/",
        "https://app.example/path",
        "app.example",
        "https://",
        "://app.example",
        "null",
        "https://app.\u00e9xample",
        "https://user@app.example",
        "https://app.example?x",
        "https://app.example:port",
        "https://app example",
    ],
)
def test_an_origin_refused(origin: str) -> None:
    """An origin is scheme, host and perhaps port (RFC 6454, section 6.2); no browser sends more."""
    for listed in (origin, f"https://good.example,{origin}"):
        assert refusal(None, GOOD | {"CORS_ORIGINS": listed}).startswith("cors.origins: ")


@pytest.mark.parametrize(
    "origin", ["https://app.example", "http://localhost:3000", "http://[::1]:8080", "app://bell"]
)
def test_an_origin_accepted(origin: str) -> None:
    """What browsers send as Origin is accepted as it is."""
    assert load(None, environ(**GOOD, CORS_ORIGINS=origin)).cors.origins == [origin]


@pytest.mark.parametrize("name", ["*", "x-*", "trace parent", "x:y", "n\u00e4me"])
def test_a_header_refused(name: str) -> None:
    """Each header that a page may send is named as a whole (RFC 9110, section 5.6.2)."""
    for listed in (name, f"traceparent,{name}"):
        assert refusal(None, GOOD | {"CORS_HEADERS": listed}).startswith("cors.headers: ")


# No error tells a value


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_no_error_tells_a_value(section: str, key: str, toml: Path) -> None:
    """Whatever is wrong with a value, in the file or the environment, the error does not repeat it.

    It may be a password in the wrong place.
    """
    name = f"{section}.{key}"
    values = [f'"{MARKER}"', f'["{MARKER}"]', f'{{x = "{MARKER}"}}', f'"postgresql://{MARKER}"']
    values += [f'{{"{MARKER}" = 1}}'] if key == "secret" else []
    for value in values:
        toml.write_text(f"[{section}]\n{key} = {value}\n")
        for variables in (GOOD, RS, {}):
            _tells_nothing(toml, variables, name)
    for text in (
        MARKER,
        f"{MARKER},{MARKER}",
        f"mysql://{MARKER}",
        f"https://{MARKER}/x",
    ):
        for variables in (GOOD, RS, {}):
            _tells_nothing(None, variables | {f"{section}_{key}".upper(): text}, name)


def _tells_nothing(file: Path | None, variables: Mapping[str, str], name: str) -> None:
    message = ""
    try:
        load_key(load(str(file) if file else None, environ(**variables)).auth)
    except ConfigError as error:
        message = str(error)
    assert MARKER not in message, name
    assert "\n" not in message, name


@pytest.mark.parametrize(
    "text",
    [
        f"[auth]\nsecret_file = {MARKER}",
        f"[auth]\nsecret_file = '{MARKER}",
        f'[auth]\nsecret_file = "\\q{MARKER}"',
        f"{MARKER}",
        f"[{MARKER}",
        f"x = 1\nx = '{MARKER}'",
        f"[auth]\nissuer = ''{MARKER}",
    ],
)
def test_bad_toml_tells_no_value(text: str, toml: Path) -> None:
    """A file that is not TOML is refused by its path and the place, not by what stands there."""
    toml.write_text(text)
    message = refusal(toml, GOOD)
    assert message.startswith(f"{toml}: not valid TOML: ")
    assert MARKER not in message
