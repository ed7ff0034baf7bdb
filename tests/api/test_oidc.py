"""Tokens of an identity provider: one that is right in everything opens the door, and each thing wrong closes it."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from api.errors import Refusal
from api.oidc import KEEP_SECONDS, PAUSE_SECONDS, Identity, Provider
from api.settings import ApiSettings, Oidc, SettingsError
from registry import db, users
from tests import factories
from tests.api.app import app_on

ISSUER, AUDIENCE = "https://sso.hospital.example/realms/staff", "overread"
RSA = RSAKey.generate_key(2048, {"kid": "rsa-1", "use": "sig"}, auto_kid=False)
EC = ECKey.generate_key("P-256", {"kid": "ec-1"}, auto_kid=False)
ED = OKPKey.generate_key("Ed25519", {"kid": "ed-1"}, auto_kid=False)
STRANGER = RSAKey.generate_key(2048, {"kid": "rsa-1"}, auto_kid=False)


class Publisher:
    """The provider's page of keys, over real HTTP; counts how often it was asked."""

    def __init__(self) -> None:
        self.keys: list[Any] = [RSA, EC, ED]
        self.asked, self.broken = 0, False
        publisher = self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.asked += 1
                body = json.dumps({"keys": [key.as_dict(private=False) for key in publisher.keys]}).encode()
                self.send_response(500 if publisher.broken else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.settings = Oidc(
            issuer=ISSUER, audience=AUDIENCE, jwks=f"http://127.0.0.1:{self.server.server_port}/keys",
            name_claim="preferred_username", roles_claim="realm_access.roles",
        )  # fmt: skip


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    """A provider that publishes its keys."""
    made = Publisher()
    thread = Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    right = {
        "iss": ISSUER, "aud": ["account", AUDIENCE], "exp": now + 300, "nbf": now, "iat": now, "sub": "7f0c",
        "preferred_username": "anna", "realm_access": {"roles": ["reviewer", "auditor", "offline_access"]},
    }  # fmt: skip
    return {name: value for name, value in (right | changes).items() if value is not None}


def signed(key: Any = RSA, algorithm: str = "RS256", header: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(
        {"alg": algorithm, "kid": key.kid, **(header or {})}, claims(**changes), key, algorithms=[algorithm]
    )


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def head_of(**more: Any) -> dict[str, Any]:
    return {"alg": "RS256", "kid": "rsa-1", **more}


def refusal(provider: Provider, token: str) -> str:
    with pytest.raises(Refusal) as refused:
        provider.identify(token)
    return refused.value.problem.slug


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS256"), (RSA, "PS256"), (EC, "ES256"), (ED, "EdDSA")])
@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")  # EdDSA's new name is not in use yet
def test_a_token_that_is_right_names_its_user(publisher: Publisher, key: Any, algorithm: str) -> None:
    provider = Provider(publisher.settings)
    roles = frozenset({"reviewer", "auditor", "offline_access"})
    assert provider.identify(signed(key, algorithm)) == Identity(name="anna", roles=roles)
    assert provider.identify(signed(key, algorithm, aud=AUDIENCE)).name == "anna"
    assert publisher.asked == 1


def test_clocks_may_differ_by_a_minute(publisher: Publisher) -> None:
    provider, now = Provider(publisher.settings), int(time.time())
    assert provider.identify(signed(exp=now - 30, nbf=now + 30)).name == "anna"


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://sso.hospital.example/realms/visitors"},
        {"iss": ISSUER + "/"},
        {"iss": None},
        {"aud": "another-service"},
        {"aud": ["account"]},
        {"aud": None},
        {"aud": []},
        {"exp": 1},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": 4_000_000_000},
        {"iat": 4_000_000_000},
        {"preferred_username": None},
        {"preferred_username": ["anna"]},
        {"preferred_username": ""},
    ],
    ids=str,
)
def test_a_claim_that_is_wrong_or_missing_closes_the_door(publisher: Publisher, changes: dict[str, Any]) -> None:
    assert refusal(Provider(publisher.settings), signed(**changes)) == "unauthenticated"


def forged() -> dict[str, str]:
    """Tokens that nobody of the provider signed."""
    head, body, signature = signed().split(".")
    confused = f"{encoded(head_of(alg='HS256'))}.{body}"
    mac = hmac.digest(RSA.as_pem(private=False), confused.encode(), "sha256")
    public = RSA.as_dict(private=False)
    return {
        "alg none": f"{encoded({'alg': 'none', 'kid': 'rsa-1'})}.{body}.",
        "alg none, signature kept": f"{encoded({'alg': 'none', 'kid': 'rsa-1'})}.{body}.{signature}",
        "HS256 with the public key as secret": f"{confused}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}",
        "another key under the same kid": signed(STRANGER),
        "another key in the header": signed(STRANGER, header={"jwk": STRANGER.as_dict(private=False)}),
        "payload changed": f"{head}.{encoded(claims(preferred_username='otto'))}.{signature}",
        "signature cut": f"{head}.{body}.{signature[:-4]}",
        "signature missing": f"{head}.{body}.",
        "header changed": f"{encoded({'alg': 'PS256', 'kid': 'rsa-1'})}.{body}.{signature}",
        "algorithm of another kind of key": f"{encoded({'alg': 'ES256', 'kid': 'rsa-1'})}.{body}.{signature}",
        "a critical header we do not know": f"{encoded(head_of(crit=['x'], x=1))}.{body}.{signature}",
        "no kid": f"{encoded({'alg': 'RS256'})}.{body}.{signature}",
        "kid of a wrong type": f"{encoded({'alg': 'RS256', 'kid': {'a': 1}})}.{body}.{signature}",
        "no JSON": "a.b.c",
        "two parts": f"{head}.{body}",
        "five parts": f"{head}.{body}.{body}.{body}.{signature}",
        "nothing": "",
        "not ASCII": "\u00e9.\u00e9.\u00e9",
        "the keys themselves": encoded(public),
    }


@pytest.mark.parametrize("what", forged())
def test_a_forged_token_closes_the_door(publisher: Publisher, what: str) -> None:
    assert refusal(Provider(publisher.settings), forged()[what]) == "unauthenticated"


def test_keys_that_are_secret_or_for_something_else_are_not_used(publisher: Publisher) -> None:
    secret = OctKey.generate_key(256, {"kid": "oct-1"}, auto_kid=False)
    sealing = RSAKey.generate_key(2048, {"kid": "enc-1", "use": "enc"}, auto_kid=False)
    publisher.keys = [RSA, sealing]
    provider = Provider(publisher.settings)
    assert refusal(provider, jwt.encode({"alg": "HS256", "kid": "oct-1"}, claims(), secret)) == "unauthenticated"
    bare = RSAKey.import_key({name: value for name, value in sealing.as_dict(private=True).items() if name != "use"})
    assert refusal(provider, signed(bare)) == "unauthenticated"


def test_a_new_key_is_fetched_once_and_a_made_up_one_does_not_keep_us_asking(publisher: Publisher) -> None:
    clock = Clock()
    provider = Provider(publisher.settings, clock=clock)
    publisher.keys = [RSA]
    assert provider.identify(signed()).name == "anna"
    publisher.keys = [RSA, EC]
    clock.now += PAUSE_SECONDS + 1
    assert provider.identify(signed(EC, "ES256")).name == "anna"
    assert publisher.asked == 2
    for number in range(20):
        made_up = signed(STRANGER, header={"kid": f"made-up-{number}"})
        assert refusal(provider, made_up) == "unauthenticated"
    assert publisher.asked == 2
    clock.now += PAUSE_SECONDS + 1
    assert refusal(provider, signed(STRANGER, header={"kid": "made-up"})) == "unauthenticated"
    assert publisher.asked == 3
    assert provider.identify(signed()).name == "anna"


def test_without_keys_nobody_is_admitted_and_a_withdrawn_key_is_forgotten(publisher: Publisher) -> None:
    clock = Clock()
    provider = Provider(publisher.settings, clock=clock)
    publisher.broken = True
    assert refusal(provider, signed()) == "identity-provider-unavailable"
    publisher.broken = False
    assert refusal(provider, signed()) == "identity-provider-unavailable", "not asked again at once"
    clock.now += PAUSE_SECONDS + 1
    assert provider.identify(signed()).name == "anna"
    publisher.broken = True
    assert KEEP_SECONDS <= 600
    clock.now += KEEP_SECONDS - 1
    assert provider.identify(signed()).name == "anna", "for a while, what was fetched is enough"
    clock.now += 2
    assert refusal(provider, signed()) == "identity-provider-unavailable"
    publisher.broken, publisher.keys = False, [EC]
    clock.now += PAUSE_SECONDS + 1
    assert refusal(provider, signed()) == "unauthenticated"


def test_keys_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    provider = Provider(Oidc(issuer=ISSUER, audience=AUDIENCE, jwks=str(file)))
    assert refusal(provider, signed()) == "identity-provider-unavailable"
    file.write_text(json.dumps({"keys": [RSA.as_dict(private=False)]}))
    provider = Provider(Oidc(issuer=ISSUER, audience=AUDIENCE, jwks=str(file)))
    assert provider.identify(signed()) == Identity(name="7f0c", roles=None)


@pytest.fixture
def client(fresh_database: str, tmp_path: Path, publisher: Publisher) -> Iterator[httpx.Client]:
    """The API with that provider, and its users: anna, and otto who was shut out."""
    with db.connect(fresh_database) as connection:
        factories.user(connection, "reviewer", "approver", name="anna")
        otto = factories.user(connection, "operator", name="otto")
        users.disable_user(connection, user_id=otto.user_id)
    with app_on(fresh_database, tmp_path, oidc=publisher.settings) as made:
        yield made


def me(client: httpx.Client, token: str) -> tuple[int, Any]:
    answer = client.get("/v1/session", headers={"Authorization": f"Bearer {token}"})
    return answer.status_code, answer.json()


def test_a_token_opens_the_api_with_the_roles_that_both_sides_grant(client: httpx.Client) -> None:
    status, known = me(client, signed())
    assert (status, known["name"], known["roles"]) == (200, "anna", ["reviewer"])
    assert me(client, signed(realm_access=None))[0] == 403
    assert me(client, signed(realm_access={"roles": "reviewer"}))[0] == 403
    assert me(client, signed(realm_access={"roles": ["operator", "root"]}))[0] == 403


def test_who_is_no_user_is_not_made_one_and_who_was_shut_out_stays_out(
    client: httpx.Client, fresh_database: str
) -> None:
    for name in ("stranger", "otto", "Anna"):
        status, problem = me(client, signed(preferred_username=name))
        assert (status, problem["type"]) == (401, "/problems/unauthenticated")
    with db.connect(fresh_database) as connection:
        assert {user.name for user in users.list_users(connection)} == {"anna", "otto"}


def test_api_keys_go_on_while_the_provider_is_away(
    client: httpx.Client, fresh_database: str, publisher: Publisher
) -> None:
    publisher.broken = True
    status, problem = me(client, signed())
    assert (status, problem["type"]) == (503, "/problems/identity-provider-unavailable")
    with db.connect(fresh_database) as connection:
        key = users.create_api_key(connection, user_id=users.by_name(connection, "anna").user_id)
    assert me(client, key)[0] == 200


def test_a_token_alone_does_not_sign(client: httpx.Client) -> None:
    token = signed(realm_access={"roles": ["approver"]})
    answer = client.post(
        "/v1/candidates/1/approvals",
        json={"decision": "approve", "reason": "x"},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/no-password")


NEEDED = {"OVERREAD_DATABASE_URL": "x", "OVERREAD_INFERENCE_TOKEN": "x", "OVERREAD_PATIENT_KEY": "ab" * 32}


def test_the_settings_name_all_of_a_provider_or_nothing() -> None:
    whole = {"OVERREAD_OIDC_ISSUER": ISSUER, "OVERREAD_OIDC_AUDIENCE": AUDIENCE, "OVERREAD_OIDC_JWKS": "https://x/keys"}
    assert ApiSettings.from_environment(NEEDED).oidc is None
    made = ApiSettings.from_environment(NEEDED | whole).oidc
    assert made == Oidc(issuer=ISSUER, audience=AUDIENCE, jwks="https://x/keys")
    for name in whole:
        with pytest.raises(SettingsError, match=name):
            ApiSettings.from_environment(NEEDED | whole | {name: ""})
    with pytest.raises(SettingsError, match="https"):
        ApiSettings.from_environment(NEEDED | whole | {"OVERREAD_OIDC_JWKS": "http://sso.example/keys"})
