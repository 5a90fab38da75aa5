"""The recipes in docs/providers.md, each with a key set and tokens of that provider's shape."""

import re
from pathlib import Path
from typing import Any

import jwt
import pytest

from service import config
from service.auth.jwks import Jwks
from service.auth.tokens import Tokens
from service.errors import InvalidToken
from tests.support.tokens import claims, jwk, private, serve_keys

PAGE = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()
RECIPES = dict(re.findall(r"^```toml (\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
USER = "5f7c8ec7-c33c-6c00-4bba-fe8211112222"
TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "66666666-7777-8888-9999-000000000000"
X509 = {"x5c": ["MIIC"], "x5t": "dGh1bWI"}
COGNITO = "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_EXAMPLE"

# provider -> what its keys say beside the key itself; the first signs
KEYS: dict[str, list[dict[str, Any]]] = {
    "auth0": [{"kid": "a", "alg": "RS256", "use": "sig", **X509}],
    "keycloak": [
        {"kid": "a", "alg": "RS256", "use": "sig", **X509},
        {"kid": "b", "alg": "RSA-OAEP", "use": "enc", **X509},
    ],
    "entra": [{"kid": "a", "use": "sig", "issuer": f"https://x/{TENANT}/v2.0", **X509}],
    "cognito": [
        {"kid": "a", "alg": "RS256", "use": "sig"},
        {"kid": "b", "alg": "RS256", "use": "sig"},
    ],
    "okta": [{"kid": "a", "alg": "RS256", "use": "sig", "status": "ACTIVE"}],
    "supabase": [{"kid": "a", "alg": "ES256", "use": "sig", "key_ops": ["verify"], "ext": True}],
}
# provider -> the claims of the tokens that it makes for us
TOKENS: dict[str, list[dict[str, Any]]] = {
    "auth0": [
        {
            "iss": "https://tenant.us.auth0.com/",
            "sub": USER,
            "aud": ["https://api.example.com/", "https://tenant.us.auth0.com/userinfo"],
            "azp": "x",
            "scope": "openid",
        }
    ],
    "keycloak": [
        {
            "iss": "https://id.example.com/realms/main",
            "sub": USER,
            "aud": "account",
            "azp": "bell",
            "typ": "Bearer",
            "jti": "onrtac:1",
        }
    ],
    "entra": [
        {
            "iss": f"https://login.microsoftonline.com/{TENANT}/v2.0",
            "sub": "pairwise",
            "oid": USER,
            "aud": CLIENT,
            "azp": CLIENT,
            "tid": TENANT,
            "ver": "2.0",
        },
        {
            "iss": f"https://sts.windows.net/{TENANT}/",
            "sub": "pairwise",
            "oid": USER,
            "aud": f"api://{CLIENT}",
            "appid": CLIENT,
            "tid": TENANT,
            "ver": "1.0",
        },
    ],
    "cognito": [
        {
            "iss": COGNITO,
            "sub": USER,
            "client_id": "1example23456789",
            "token_use": "access",
            "username": "ada",
        }
    ],
    "okta": [
        {
            "iss": "https://company.okta.com/oauth2/default",
            "sub": "ada@example.com",
            "uid": USER,
            "aud": "api://default",
            "cid": "x",
            "scp": ["openid"],
            "ver": 1,
        }
    ],
    "supabase": [
        {
            "iss": "https://project.supabase.co/auth/v1",
            "sub": USER,
            "aud": "authenticated",
            "role": "authenticated",
            "session_id": "x",
            "is_anonymous": False,
        }
    ],
}
# provider -> what differs in a token that is for another application or tenant, and the cause
FOREIGN: dict[str, list[tuple[dict[str, Any], str]]] = {
    "auth0": [
        ({"aud": "https://other.example.com/"}, "claim aud"),
        ({"iss": "https://other.us.auth0.com/"}, "claim iss"),
    ],
    "keycloak": [
        ({"azp": "other"}, "claim client"),
        ({"azp": None}, "claim client"),
        ({"iss": "https://id.example.com/realms/other"}, "claim iss"),
    ],
    "entra": [
        ({"aud": "00000003-0000-0000-c000-000000000000"}, "claim aud"),
        ({"iss": "https://login.microsoftonline.com/other/v2.0"}, "claim iss"),
    ],
    "cognito": [
        ({"client_id": "other"}, "claim client"),
        ({"client_id": ["1example23456789"]}, "claim client"),
        # an identity token
        ({"client_id": None, "aud": "1example23456789", "token_use": "id"}, "claim client"),
    ],
    "okta": [({"aud": "https://company.okta.com"}, "claim aud")],
    "supabase": [({"aud": None, "role": "anon"}, "claim aud"), ({"iss": "supabase"}, "claim iss")],
}


def test_each_recipe_has_its_tests() -> None:
    """And each test its recipe."""
    assert RECIPES.keys() == KEYS.keys() == TOKENS.keys() == FOREIGN.keys()


@pytest.mark.parametrize("provider", RECIPES)
async def test_a_recipe(provider: str, tmp_path: Path) -> None:
    """It passes the checks of the start, takes the provider's tokens for us, and no others."""
    file = tmp_path / "config.toml"
    file.write_text(f'[database]\nurl = "postgresql://db/x"\n[auth]\n{RECIPES[provider]}')
    auth = config.load(str(file), {}).auth
    algorithm = auth.algorithms[0]
    async with serve_keys() as server:
        server.serve(
            *(
                {**jwk(private(algorithm, number), None), **more}
                for number, more in enumerate(KEYS[provider])
            )
        )
        tokens = Tokens(auth, Jwks(server.url, auth.algorithms))

        async def verdict(**more: Any) -> str:
            named = {name: value for name, value in claims(**more).items() if value is not None}
            del named["userId"]
            text = jwt.encode(named, private(algorithm), algorithm, {"kid": "a"})
            try:
                return await tokens.user_id(f"Bearer {text}")
            except InvalidToken as error:
                return error.cause

        for shape in TOKENS[provider]:
            assert await verdict(**shape) == USER
            for change, cause in FOREIGN[provider]:
                assert await verdict(**{**shape, **change}) == cause
