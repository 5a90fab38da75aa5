"""Verifying a bearer token: each algorithm, each way of being wrong, and what is remembered."""

import asyncio
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from service import config
from service.auth import keys
from service.auth.keys import MAX_CANDIDATES, FixedKeys, load_key
from service.auth.tokens import Tokens, sign
from service.errors import ConfigError, InvalidToken, Unauthenticated
from service.observing import KeyFileFailed
from tests.conftest import SECRET, token
from tests.support.tokens import ASYMMETRIC, claims, forge, pem, private, segment, signed

HMAC = ("HS256", "HS384", "HS512")
GOOD_HEADER = {"alg": "HS256", "typ": "JWT"}


def tokens(**more: Any) -> Tokens:
    """What verifies, with a key out of the configuration."""
    if "algorithms" not in more:
        more["secret"] = SECRET
    section = config.Auth(**more)
    return Tokens(section, load_key(section))


async def user_id(verifier: Tokens, text: str) -> str:
    """The user that a token is for."""
    return await verifier.user_id(f"Bearer {text}")


async def why(verifier: Tokens, text: str) -> tuple[str, str]:
    """Why a token is refused: what the caller is told, and the cause in the log."""
    with pytest.raises(InvalidToken) as error:
        await user_id(verifier, text)
    return str(error.value), error.value.cause


# Algorithms


@pytest.mark.parametrize("algorithm", HMAC)
@pytest.mark.parametrize("source", ["secret", "secret_file"])
async def test_a_secret_verifies(algorithm: str, source: str, tmp_path: Path) -> None:
    """HS256, HS384 and HS512 verify with the secret, also one out of a file, newline and all."""
    (tmp_path / "secret").write_text("s" * 64 + "\n")
    value = "s" * 64 if source == "secret" else str(tmp_path / "secret")
    verifier = tokens(algorithms=[algorithm], **{source: value})
    assert await user_id(verifier, jwt.encode(claims(), "s" * 64, algorithm)) == "alice"
    for other in set(HMAC) - {algorithm}:
        assert (await why(verifier, jwt.encode(claims(), "s" * 64, other)))[1] == "algorithm"


def refusal(**more: Any) -> str:
    """Why a key is refused before anything runs."""
    with pytest.raises(ConfigError) as error:
        load_key(config.Auth(**more))
    return str(error.value)


SOURCES = ("secret", "secret_file")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("algorithm", HMAC)
def test_a_secret_is_as_long_as_its_algorithm_asks(
    algorithm: str, source: str, tmp_path: Path
) -> None:
    """32, 48 or 64 bytes (RFC 7518, section 3.2); of several algorithms, the longest counts."""
    bytes_ = int(algorithm[2:]) // 8
    for length, algorithms in ((bytes_ - 1, [algorithm]), (bytes_ - 1, ["HS256", algorithm])):
        (tmp_path / "secret").write_text("s" * length)
        value = "s" * length if source == "secret" else str(tmp_path / "secret")
        found = refusal(algorithms=algorithms, **{source: value})
        assert found.startswith(f"auth.{source}: shorter than {bytes_} bytes")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", ["public", "private", "ssh"])
def test_a_key_pair_is_no_secret(kind: str, source: str, tmp_path: Path) -> None:
    """A PEM, or a key as SSH writes it, would fail every token; the start says so."""
    key = private("ES256")
    text = {
        "public": pem(key),
        "private": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "ssh": key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
    }[kind].decode()
    (tmp_path / "secret").write_text(text)
    value = text if source == "secret" else str(tmp_path / "secret")
    assert (
        refusal(**{source: value}) == f"auth.{source}: a key in PEM or SSH format is not a secret"
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
async def test_a_newline_ends_a_secret(end: str) -> None:
    """What `$(cat file)` or a mounted secret leaves at the end of a variable is no part of it."""
    read = config.read(None, {"SYSTEMEVENT_AUTH_SECRET": SECRET + end})
    assert await user_id(Tokens(read.auth, load_key(read.auth)), token()) == "alice"


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
async def test_a_public_key_file_verifies(algorithm: str, tmp_path: Path) -> None:
    """Each asymmetric algorithm verifies with its public key, and no other algorithm does."""
    file = tmp_path / "public.pem"
    file.write_bytes(pem(private(algorithm)))
    verifier = tokens(algorithms=list(ASYMMETRIC), public_key_file=str(file))
    assert await user_id(verifier, signed(algorithm)) == "alice"
    only = tokens(algorithms=[algorithm], public_key_file=str(file))
    for other in set(ASYMMETRIC) - {algorithm}:
        assert (await why(only, signed(other)))[1] == "algorithm"


# Several keys


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the files all the time."""
    monkeypatch.setattr(keys, "INTERVAL", 0.001)


def following(**more: Any) -> tuple[Tokens, FixedKeys]:
    """What verifies, and its keys, connected as the application does it."""
    auth = config.Auth(**more)
    source = load_key(auth)
    verifier = Tokens(auth, source)
    source.on_change = verifier.forget
    return verifier, source


async def verdict(verifier: Tokens, text: str) -> str:
    """The user that a token is for, or the cause of its refusal."""
    try:
        return await user_id(verifier, text)
    except InvalidToken as error:
        return error.cause


async def until(verifier: Tokens, text: str, wanted: str) -> None:
    """Wait until a token has this verdict; each look lets the loop and a thread go on."""
    async with asyncio.timeout(30):
        while await verdict(verifier, text) != wanted:
            await asyncio.to_thread(lambda: None)


OTHER = "another secret, also of 32 bytes and more"


async def test_the_previous_secret_verifies_too() -> None:
    """The secret signs; both verify, and no third."""
    more: dict[str, Any] = {"secret": SECRET, "previous_secret": OTHER}
    verifier = tokens(algorithms=["HS256"], **more)
    for secret, wanted in ((SECRET, "alice"), (OTHER, "alice"), ("x" * 40, "signature")):
        assert await verdict(verifier, token(secret=secret)) == wanted
    assert jwt.decode(sign(config.Auth(**more), "alice"), SECRET, ["HS256"])["userId"] == "alice"
    assert refusal(secret=SECRET, previous_secret=pem(private("ES256")).decode())


async def test_a_file_holds_a_secret_a_line(tmp_path: Path) -> None:
    """The first signs, all verify; blank lines and blanks at the ends do not count."""
    file = tmp_path / "secrets"
    file.write_text(f"\n{SECRET}\r\n\n {OTHER} \n")
    verifier = tokens(algorithms=["HS256"], secret_file=str(file))
    for secret in (SECRET, OTHER):
        assert await verdict(verifier, token(secret=secret)) == "alice"
    signed_here = sign(config.Auth(secret_file=str(file)), "alice")
    assert jwt.decode(signed_here, SECRET, ["HS256"])["userId"] == "alice"
    file.write_text(f"{SECRET}\nshort\n")
    assert refusal(secret_file=str(file)).startswith("auth.secret_file: shorter than 32 bytes")
    file.write_text(f"{SECRET}\n" * (MAX_CANDIDATES + 1))
    assert refusal(secret_file=str(file)) == "auth.secret_file: more than 8 keys"


async def test_a_file_holds_several_public_keys(tmp_path: Path) -> None:
    """Of any types; text around the blocks does not count, a block that is damaged does."""
    file = tmp_path / "public.pem"
    blocks = [pem(private("ES256")), pem(private("ES256", 1)), pem(private("RS256"))]
    file.write_bytes(b"# ours\n" + b"\n# and\n".join(blocks))
    more: dict[str, Any] = {"algorithms": ["ES256", "RS256"], "public_key_file": str(file)}
    verifier = tokens(**more)
    for good in (signed("ES256"), signed("ES256", "any", 1), signed("RS256")):
        assert await verdict(verifier, good) == "alice"
    assert await verdict(verifier, signed("ES256", number=2)) == "signature"
    for bad, reason in ((blocks[1][:60], "not a public key"), (pem(private("EdDSA")), "the key")):
        file.write_bytes(blocks[0] + bad)
        assert refusal(**more).startswith(f"auth.public_key_file: {reason}")


@pytest.mark.usefixtures("quick")
async def test_a_mounted_secret_is_replaced(tmp_path: Path) -> None:
    """A new file is used without a signal; what a key that is gone has verified is forgotten."""
    for name, content in (("1", SECRET), ("2", f"{OTHER}\n{SECRET}"), ("3", OTHER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "secret").write_text(content)

    def mount(name: str) -> None:  # as Kubernetes does it
        (tmp_path / "new").symlink_to(name)
        (tmp_path / "new").replace(tmp_path / "data")

    mount("1")
    verifier, source = following(secret_file=str(tmp_path / "data" / "secret"))
    async with source.run():
        assert await verdict(verifier, token(secret=OTHER)) == "signature"
        assert await verdict(verifier, token()) == "alice"
        mount("2")
        await until(verifier, token(secret=OTHER), "alice")
        old = token()
        assert await verdict(verifier, old) == "alice"
        mount("3")
        await until(verifier, old, "signature")
        assert await verdict(verifier, token(secret=OTHER)) == "alice"


@pytest.mark.usefixtures("quick")
async def test_a_public_key_file_is_replaced(tmp_path: Path) -> None:
    """Like a secret."""
    file = tmp_path / "public.pem"
    file.write_bytes(pem(private("ES256")))
    verifier, source = following(algorithms=["ES256"], public_key_file=str(file))
    old, new = signed("ES256"), signed("ES256", number=1)
    async with source.run():
        assert await verdict(verifier, old) == "alice"
        file.write_bytes(pem(private("ES256", 1)))
        await until(verifier, new, "alice")
        assert await verdict(verifier, old) == "signature"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"short", "shorter than 32 bytes, which auth.algorithms asks for"),
        (b"", "shorter than 32 bytes, which auth.algorithms asks for"),
        (None, "No such file or directory"),
    ],
)
async def test_a_bad_file_leaves_the_keys_in_force(
    bad: bytes | None, reason: str, tmp_path: Path
) -> None:
    """It is told once; the next good file is taken."""
    file = tmp_path / "secret"
    file.write_text(SECRET)
    verifier, source = following(secret_file=str(file))
    told: list[str] = []
    source.observers.listen(KeyFileFailed, lambda it: told.append(it.reason))
    async with source.run():
        file.unlink() if bad is None else file.write_bytes(bad)
        async with asyncio.timeout(30):
            while not told:
                await asyncio.to_thread(lambda: None)
        assert await verdict(verifier, token()) == "alice"
        file.write_text(OTHER)
        await until(verifier, token(secret=OTHER), "alice")
    assert told[0] == f"auth.secret_file: {reason}"
    assert told.count(told[0]) == 1


@pytest.mark.parametrize("configured", ["EdDSA", "Ed25519"])
@pytest.mark.parametrize("alg", ["EdDSA", "Ed25519"])
async def test_ed25519_has_two_names(configured: str, alg: str, tmp_path: Path) -> None:
    """EdDSA with that curve is called Ed25519 as well (RFC 9864)."""
    file = tmp_path / "public.pem"
    file.write_bytes(pem(private("EdDSA")))
    verifier = tokens(algorithms=[configured], public_key_file=str(file))
    assert await user_id(verifier, jwt.encode(claims(), private("EdDSA"), alg)) == "alice"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_a_public_key_is_no_secret(algorithm: str, tmp_path: Path) -> None:
    """A token signed with HS256 and the text of the public key as secret is refused."""
    file = tmp_path / "public.pem"
    file.write_bytes(pem(private(algorithm)))
    verifier = tokens(algorithms=list(ASYMMETRIC), public_key_file=str(file))
    for secret in (file.read_bytes(), file.read_bytes().strip()):
        assert (await why(verifier, forge({"alg": "HS256"}, claims(), secret)))[1] == "algorithm"
    with pytest.raises(InvalidToken):
        await user_id(verifier, forge({"alg": algorithm}, claims(), file.read_bytes()))


# The header


@pytest.mark.parametrize(
    "header", ["Basic YWxpY2U6c2VjcmV0", "Digest a=b", "Token abc", "", "BearerX abc", "Bearer,abc"]
)
async def test_no_bearer_token(header: str) -> None:
    """Another scheme is no bad token, but none."""
    with pytest.raises(Unauthenticated):
        await tokens().user_id(header)


@pytest.mark.parametrize(
    "text",
    ["", " ", "\t", "a b", "a,b", "\u00e9", "\U0001f514", '"quoted"', "=", "\u0661", "\udcff"],
)
async def test_a_malformed_token(text: str) -> None:
    """What is not token68 after the scheme is refused (RFC 6750, section 2.1)."""
    assert await why(tokens(), text) == ("malformed token", "malformed")


# The token

HEADERS: dict[str, tuple[object, str]] = {
    "alg none": ({"alg": "none"}, "algorithm"),
    "alg None": ({"alg": "None"}, "algorithm"),
    "alg of another secret's length": ({"alg": "HS512"}, "algorithm"),
    "alg of a public key": ({"alg": "RS256"}, "algorithm"),
    "alg unknown": ({"alg": "HS257"}, "algorithm"),
    "alg null": ({"alg": None}, "algorithm"),
    "alg a list": ({"alg": ["HS256"]}, "algorithm"),
    "alg missing": ({"typ": "JWT"}, "malformed"),
    "kid a number": ({"alg": "HS256", "kid": 1}, "malformed"),
    "kid null": ({"alg": "HS256", "kid": None}, "malformed"),
    "kid an object": ({"alg": "HS256", "kid": {}}, "malformed"),
    "crit unknown": ({"alg": "HS256", "crit": ["mfa"], "mfa": True}, "malformed"),
    "crit empty": ({"alg": "HS256", "crit": []}, "malformed"),
    "crit no list": ({"alg": "HS256", "crit": "exp"}, "malformed"),
    "b64 false": ({"alg": "HS256", "b64": False}, "malformed"),
    "b64 false, declared": ({"alg": "HS256", "b64": False, "crit": ["b64"]}, "malformed"),
    "not an object": ([], "malformed"),
    "a number": (1, "malformed"),
    "a string": ("HS256", "malformed"),
    "null": (None, "malformed"),
    "not JSON": (b"{", "malformed"),
    "not UTF-8": (b'{"alg":"HS256\xff"}', "malformed"),
    "empty": (b"", "malformed"),
}
CLAIMS: dict[str, tuple[object, str]] = {
    "no exp": ({"userId": "alice"}, "claim exp"),
    "exp null": (claims(exp=None), "claim exp"),
    "exp a word": (claims(exp="soon"), "malformed"),
    "exp digits in a string": (claims(exp="99999999999"), "claim exp"),
    "exp a list": (claims(exp=[99999999999]), "malformed"),
    "exp an object": (claims(exp={}), "malformed"),
    "exp infinite": (b'{"userId":"alice","exp":1e999}', "malformed"),
    "exp Infinity": (b'{"userId":"alice","exp":Infinity}', "malformed"),
    "exp NaN": (b'{"userId":"alice","exp":NaN}', "malformed"),
    "exp with 5000 digits": (b'{"userId":"alice","exp":' + b"9" * 5000 + b"}", "malformed"),
    "nbf in the future": (claims(nbf=int(time.time()) + 3600), "claim nbf"),
    "nbf a word": (claims(nbf="now"), "malformed"),
    "no user": ({"exp": int(time.time()) + 600}, "claim user"),
    "user null": (claims(userId=None), "claim user"),
    "user a number": (claims(userId=7), "claim user"),
    "user true": (claims(userId=True), "claim user"),
    "user a list": (claims(userId=["alice"]), "claim user"),
    "user empty": (claims(userId=""), "claim user"),
    "user with NUL": (claims(userId="alice\0"), "claim user"),
    "user a surrogate": (claims(userId="\ud800"), "claim user"),
    "user too long": (claims(userId="x" * 256), "claim user"),
    "not an object": (["alice"], "malformed"),
    "a string": ("alice", "malformed"),
    "null": (None, "malformed"),
    "not JSON": (b"alice", "malformed"),
    "not UTF-8": (b'{"userId":"alice","exp":99999999999,"x":"\xff"}', "malformed"),
    "empty": (b"", "malformed"),
}


@pytest.mark.parametrize("name", HEADERS)
async def test_a_header_that_proves_nothing(name: str) -> None:
    """A correct signature does not help a token whose header is wrong."""
    header, cause = HEADERS[name]
    assert await why(tokens(), forge(header, claims())) == ("invalid token", cause)


@pytest.mark.parametrize("name", CLAIMS)
async def test_claims_that_prove_nothing(name: str) -> None:
    """A correct signature does not help a token whose claims are wrong."""
    payload, cause = CLAIMS[name]
    assert await why(tokens(), forge(GOOD_HEADER, payload)) == ("invalid token", cause)


@pytest.mark.parametrize("depth", [10_000, 100_000])
async def test_nesting_of_any_depth(depth: int) -> None:
    """Recursion in a decoder is a refusal too, however large a header HTTP may let pass."""
    deep = b'{"alg":"HS256","x":' + b"[" * depth + b"]" * depth + b"}"
    for forged in (forge(deep, claims()), forge(GOOD_HEADER, deep)):
        assert await why(tokens(), forged) == ("invalid token", "malformed")


@pytest.mark.parametrize(
    "exp",
    [int(time.time()) - 1, time.time() - 1.5, 0, -(10**30)],
    ids=["a second ago", "with a fraction", "1970", "long before"],
)
async def test_an_expired_token(exp: float) -> None:
    """A token that has ended says so, but not one that was never good."""
    assert await why(tokens(), forge(GOOD_HEADER, claims(exp=exp))) == ("token expired", "expired")
    unsigned = forge(GOOD_HEADER, claims(exp=exp), b"another secret, as long as the right one")
    assert await why(tokens(), unsigned) == ("invalid token", "signature")


@pytest.mark.parametrize(
    "more",
    [
        {"exp": time.time() + 600.5},
        {"iat": 99999999999},
        {"iat": "yesterday"},
        {"aud": "another service", "iss": "https://elsewhere.example"},
        {"sub": 7, "orgId": "globex"},
        {"nbf": 0, "jti": "7"},
        {"jti": 7},
        {"jti": None},
    ],
)
async def test_claims_that_do_not_matter(more: dict[str, object]) -> None:
    """An exp may have a fraction; iat, jti, and aud, iss, sub where not configured, are ignored."""
    assert await user_id(tokens(), forge(GOOD_HEADER, claims(**more))) == "alice"


def _tampered() -> dict[str, tuple[str, str]]:
    header, payload, signature = token().split(".")
    flipped = ("B" if signature[0] == "A" else "A") + signature[1:]
    other = token(user_id="owner").split(".")[1]
    return {
        "another payload": (f"{header}.{other}.{signature}", "signature"),
        "no signature": (f"{header}.{payload}.", "signature"),
        "signature cut": (f"{header}.{payload}.{signature[:-3]}", "signature"),
        "signature flipped": (f"{header}.{payload}.{flipped}", "signature"),
        "detached": (f"{header}..{signature}", "signature"),
        "another secret": (token(secret=SECRET + "!"), "signature"),
        "two segments": (f"{header}.{payload}", "malformed"),
        "four segments": (f"{header}.{payload}.{signature}.{signature}", "malformed"),
        "five segments": (".".join([header] * 5), "malformed"),
        "one segment": ("abc", "malformed"),
        "dots": ("..", "malformed"),
        "base64 of nothing": ("=.=.=", "malformed"),
        "length no base64 has": (f"{header}A.{payload}.{signature}", "malformed"),
        "not URL-safe": (f"{header}.{payload}.+/+/", "malformed"),
        "all dots": ("." * 2000, "malformed"),
    }


@pytest.mark.parametrize("name", _tampered())
async def test_a_token_tampered_with(name: str) -> None:
    """Whatever is done to a good token, it is refused."""
    text, cause = _tampered()[name]
    assert (await why(tokens(), text))[1] == cause


AUDIENCE = {"audience": ["bell", "desk"]}
ISSUER = {"issuer": "https://id.example"}
ISSUERS = {"issuer": ["https://id.example", "https://old.example"]}
CLIENTS = {"client_claim": "azp", "clients": ["bell", "desk"]}


@pytest.mark.parametrize(
    ("section", "more", "cause"),
    [
        (AUDIENCE, {"aud": "bell"}, ""),
        (AUDIENCE, {"aud": ["x", "desk"]}, ""),
        (AUDIENCE, {"aud": "x"}, "claim aud"),
        (AUDIENCE, {"aud": ["x"]}, "claim aud"),
        (AUDIENCE, {"aud": []}, "claim aud"),
        (AUDIENCE, {"aud": 7}, "claim aud"),
        (AUDIENCE, {"aud": ["bell", 7]}, "claim aud"),
        (AUDIENCE, {}, "claim aud"),
        (ISSUER, {"iss": "https://id.example"}, ""),
        (ISSUER, {"iss": "https://id.example/"}, "claim iss"),
        (ISSUER, {"iss": ["https://id.example"]}, "claim iss"),
        (ISSUER, {"iss": 7}, "claim iss"),
        (ISSUER, {}, "claim iss"),
        (ISSUERS, {"iss": "https://id.example"}, ""),
        (ISSUERS, {"iss": "https://old.example"}, ""),
        (ISSUERS, {"iss": "https://other.example"}, "claim iss"),
        (ISSUERS, {"iss": ["https://id.example"]}, "claim iss"),
        (ISSUERS, {}, "claim iss"),
        (CLIENTS, {"azp": "bell"}, ""),
        (CLIENTS, {"azp": "desk", "aud": "any"}, ""),
        (CLIENTS, {"azp": "x"}, "claim client"),
        (CLIENTS, {"azp": ["bell"]}, "claim client"),
        (CLIENTS, {"azp": None}, "claim client"),
        (CLIENTS, {"aud": "bell"}, "claim client"),
        ({**AUDIENCE, **CLIENTS}, {"azp": "bell"}, "claim aud"),
        ({**AUDIENCE, **ISSUER}, {"aud": "bell", "iss": "https://id.example"}, ""),
        ({**AUDIENCE, **ISSUER}, {"aud": "bell"}, "claim iss"),
        ({"user_claim": "sub"}, {"sub": "alice", "userId": None}, ""),
        ({"user_claim": "sub"}, {"sub": 7}, "claim user"),
        ({"user_claim": "sub"}, {}, "claim user"),
    ],
)
async def test_what_is_configured_is_checked(
    section: dict[str, Any], more: dict[str, object], cause: str
) -> None:
    """Audience, issuer, client and the user claim, where configured."""
    forged = forge(GOOD_HEADER, claims(**more))
    if cause:
        assert await why(tokens(**section), forged) == ("invalid token", cause)
    else:
        assert await user_id(tokens(**section), forged) == "alice"


async def test_what_is_signed_here_is_accepted_here() -> None:
    """`systemevent-read token` signs with all that is checked, the first of each, for an hour."""
    more: dict[str, Any] = {"algorithms": ["HS256"], "secret": SECRET}
    more |= AUDIENCE | ISSUERS | CLIENTS
    text = sign(config.Auth(**more), "alice")
    assert await user_id(tokens(**more), text) == "alice"
    first = config.Auth(**more)
    signed_for = jwt.decode(text, options={"verify_signature": False})
    assert signed_for["aud"] == first.audience[0]
    assert signed_for["iss"] == first.issuers[0]
    assert signed_for["azp"] == first.clients[0]
    assert 0 <= time.time() + 3600 - signed_for["exp"] < 60


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_what_is_remembered_ends_with_its_token(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the header is written."""
    verifier, text = tokens(), token(exp=time.time() + 600)
    for misses, hits in ((1, 0), (1, 1), (1, 2)):
        assert await verifier.user_id(f"{scheme} {text}") == "alice"
        assert (verifier.misses, verifier.hits) == (misses, hits)
    later = SimpleNamespace(time=lambda: time.time() + 601)
    monkeypatch.setattr("service.auth.tokens.time", later)
    assert await verifier.user_id(f"{scheme} {text}") == "alice"  # PyJWT has a clock of its own
    assert (verifier.misses, verifier.hits) == (2, 2)


@pytest.mark.parametrize("length", [1, 255])
async def test_a_user_id_of_any_length_that_is_kept(length: int) -> None:
    assert await user_id(tokens(), forge(GOOD_HEADER, claims(userId="x" * length))) == "x" * length


@pytest.mark.parametrize(
    ("claim", "seconds", "good"),
    [("exp", -30, True), ("exp", -61, False), ("nbf", 30, True), ("nbf", 120, False)],
)
async def test_clocks_may_differ_by_the_leeway(claim: str, seconds: int, *, good: bool) -> None:
    """A token that ended, or begins, within the leeway is accepted; beyond it is not."""
    forged = forge(GOOD_HEADER, claims(**{claim: int(time.time()) + seconds}))
    with nullcontext() if good else pytest.raises(InvalidToken):
        assert await user_id(tokens(leeway=60.0), forged) == "alice"
    with pytest.raises(InvalidToken):
        await user_id(tokens(), forged)


# What is remembered


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that were verified, each time they were."""
    seen: list[str] = []
    decode = jwt.decode

    def count(text: str, *arguments: Any, **more: Any) -> Any:
        seen.append(text)
        return decode(text, *arguments, **more)

    monkeypatch.setattr(jwt, "decode", count)
    return seen


async def test_a_verified_token_is_not_verified_again(decoded: list[str]) -> None:
    """Verifying is paid for once; a token that was refused is remembered by nobody."""
    verifier, good, bad = tokens(), token(), token(secret=SECRET + "!")
    for _ in range(3):
        assert await user_id(verifier, good) == "alice"
        with pytest.raises(InvalidToken):
            await user_id(verifier, bad)
    assert decoded == [good, bad, bad, bad]


async def test_the_token_is_remembered_however_it_is_sent(decoded: list[str]) -> None:
    """The scheme in any case, and one or more spaces (RFC 9110, section 11), are one token."""
    verifier, good = tokens(cache_size=2), token()
    other = token(user_id="bob")
    assert await user_id(verifier, other) == "bob"
    for scheme in ("bearer ", "Bearer   ", "BEARER ", "Bearer ", "bEaReR  ", "bearer "):
        assert await verifier.user_id(scheme + good) == "alice"
    assert await user_id(verifier, other) == "bob"
    assert decoded == [other, good]


@pytest.mark.parametrize(
    ("leeway", "after", "times"), [(0.0, 599, 1), (0.0, 600, 2), (60.0, 659, 1), (60.0, 660, 2)]
)
async def test_a_token_is_not_remembered_past_its_end(
    decoded: list[str], monkeypatch: pytest.MonkeyPatch, leeway: float, after: int, times: int
) -> None:
    """A remembered token is verified anew from its exp on, later by the leeway."""
    start = int(time.time())
    clock = [start]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    verifier, good = tokens(leeway=leeway), forge(GOOD_HEADER, claims(exp=start + 600))
    await user_id(verifier, good)
    clock.append(clock.pop() + after)
    await user_id(verifier, good)
    assert decoded == [good] * times


async def test_what_is_remembered_is_bounded(decoded: list[str]) -> None:
    """Of more tokens than the cache holds, the one used longest ago is verified anew."""
    verifier = tokens(cache_size=2)
    first, second, third = (token(user_id=name) for name in ("alice", "bob", "gina"))
    for each in (first, second, first, third, first):
        await user_id(verifier, each)
    assert decoded == [first, second, third]
    await user_id(verifier, second)
    assert decoded[3:] == [second]


async def test_the_algorithm_is_looked_at_before_the_rest() -> None:
    """A long token costs time by each of its characters: no more of it is read than has to be."""
    head = segment(b'{"alg":"RS256"}').decode()
    assert (await why(tokens(), f"{head}.not/base64url.not+either"))[1] == "algorithm"
