"""Bearer tokens of the hospital's identity provider (OpenID Connect), where one is configured.

A token must be signed by a key the provider publishes now, with an algorithm of the list, by the issuer, for us, and in
time; whoever it names must be a user of the record already, and its roles only ever take away from theirs. Without the
provider's keys nobody is admitted: keys are kept for ten minutes, and asked for again when a token names a new one.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from joserfc import jwt
from joserfc.errors import ClaimError, ExpiredTokenError, JoseError
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

from api.errors import Refusal
from api.settings import Oidc

ALGORITHMS = ("RS256", "PS256", "ES256", "ES384", "EdDSA")
"""Signatures by a private key only. Neither `none` nor HMAC, for which our copy of a public key would be the secret."""
LEEWAY_SECONDS = 60
KEEP_SECONDS = 600
"""A key that the provider withdrew is refused after this long."""
PAUSE_SECONDS = 10
"""Between two attempts to fetch the keys, whatever a stranger's tokens name."""
FETCH_SECONDS = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whom a token names; `roles` is None where the tokens of this provider carry none."""

    name: str
    roles: frozenset[str] | None


class Provider:
    """The identity provider as its tokens and its published keys show it; safe to use from many threads."""

    def __init__(self, settings: Oidc, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._lock = threading.Lock()
        self._keys: dict[str, RSAKey | ECKey | OKPKey] = {}
        self._fetched_at = self._tried_at = -float("inf")
        self._claims = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": settings.issuer},
            aud={"essential": True, "value": settings.audience},
            exp={"essential": True},
        )

    def identify(self, token: str) -> Identity:
        """Return whom a token names. Raises Refusal (unauthenticated, identity-provider-unavailable)."""
        try:
            claims = jwt.decode(token, self._key_of, algorithms=ALGORITHMS).claims
            self._claims.validate(claims)
        except ExpiredTokenError:
            raise _refused("has expired; ask the identity provider for a new one") from None
        except ClaimError as error:
            raise _refused(f"is not for this service: look at its claim `{error.claim}`") from None
        except (JoseError, ValueError, TypeError, KeyError):
            raise _refused("is not one that this service's identity provider signed") from None
        name = _at(claims, self._settings.name_claim)
        if not isinstance(name, str) or not name:
            raise _refused(f"names nobody: it lacks the claim `{self._settings.name_claim}`")
        return Identity(name=name, roles=self._roles(claims))

    def _roles(self, claims: Mapping[str, Any]) -> frozenset[str] | None:
        if self._settings.roles_claim is None:
            return None
        roles = _at(claims, self._settings.roles_claim)
        return frozenset(role for role in roles if isinstance(role, str)) if isinstance(roles, list) else frozenset()

    def _key_of(self, signature: Any) -> RSAKey | ECKey | OKPKey:
        kid = signature.headers().get("kid")
        with self._lock:  # one asks, the others wait for its answer
            now = self._clock()
            stale = now - self._fetched_at > KEEP_SECONDS
            if (stale or kid not in self._keys) and now - self._tried_at > PAUSE_SECONDS:
                self._tried_at = now
                if self._fetch():
                    self._fetched_at, stale = now, False
            if stale:
                raise Refusal("identity-provider-unavailable")
            if kid not in self._keys:
                raise ValueError("signed with a key that the provider does not publish")
            return self._keys[kid]

    def _fetch(self) -> bool:
        """Replace the keys by those published now; say whether there was an answer."""
        try:
            published = KeySet.import_key_set(self._read())
        except (OSError, httpx.HTTPError, JoseError, ValueError, TypeError, KeyError) as error:
            log.warning("the keys of the identity provider cannot be read: %s", type(error).__name__)
            return False
        self._keys = {
            str(key.kid): key
            for key in published.keys
            if isinstance(key, RSAKey | ECKey | OKPKey) and key.kid and key.get("use", "sig") == "sig"
        }
        return True

    def _read(self) -> Any:
        where = self._settings.jwks
        if "://" not in where:
            return json.loads(Path(where).read_bytes())
        answer = httpx.get(where, timeout=FETCH_SECONDS, follow_redirects=False)
        return answer.raise_for_status().json()


def _at(claims: Mapping[str, Any], path: str) -> Any:
    """A claim, or one inside it: `realm_access.roles`."""
    value: Any = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _refused(why: str) -> Refusal:
    return Refusal("unauthenticated", f"This token {why}.")
