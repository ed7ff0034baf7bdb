"""What the API process has to be told, read once from the environment and passed down.

Secrets have no default: without them the process refuses to start and says how to make them. `docs/operating.md`
lists every variable of the whole service.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from registry import notes, sessions


class SettingsError(ValueError):
    """A setting is missing or unusable; the message names the variable and how to mend it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Oidc:
    """The hospital's identity provider, and how its tokens name our users."""

    issuer: str
    """Must equal the claim `iss`."""
    audience: str
    """Must be among the claim `aud`."""
    jwks: str
    """Where its public keys are: a URL, or the path of a file."""
    name_claim: str = "sub"
    """Holds the name of the user. Take one that people cannot change for themselves."""
    roles_claim: str | None = None
    """Holds a list of roles, `a.b` for one inside another. A user then has those of their roles that it names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Addresses, folders and secrets of the API process; secrets never appear in its repr."""

    database_url: str = field(repr=False)
    """PostgreSQL of the record, `postgresql://…`; may hold a password."""
    blob_root: Path
    """Folder of the content-addressed images, shared with workers and inference."""
    inference_url: str
    inference_token: str = field(repr=False)
    """Shared secret that the inference process asks for."""
    patient_key: bytes = field(repr=False)
    """Keys the hash that replaces patient identifiers; whoever holds it could test guesses of identifiers."""
    pool_size: int = 8
    statement_seconds: float = 15.0
    """A statement that takes longer is cancelled, and its request refused as `record-busy`."""
    lock_seconds: float = 10.0
    """So is one that waits longer for a lock."""
    """Most connections to PostgreSQL held at once; a request that gets none within five seconds is refused."""
    session_limits: sessions.Limits = field(default_factory=sessions.Limits)
    """How long a person stays signed in."""
    checkpoints: Path = Path("checkpoints")
    """Folder of the signed checkpoints, which an export rests on; they are made elsewhere, and only read here."""
    verifier_key: Path = Path("checkpoint.key.pub")
    """File of the key that checks them. The one that signs is not for this process."""
    requests_per_second: float = 1000.0
    """What each user may go on asking for; each API process counts for itself."""
    request_burst: float = 2000.0
    """What each user may ask for at once."""
    oidc: Oidc | None = None
    """None: only API keys and passwords."""

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> ApiSettings:
        """Read the settings. Raises SettingsError naming the first variable at fault."""
        home = Path(environment.get("OVERREAD_HOME") or Path.home() / ".overread").expanduser()
        return ApiSettings(
            database_url=_needed(
                environment, "OVERREAD_DATABASE_URL", "for example postgresql://127.0.0.1:5432/overread"
            ),
            blob_root=Path(environment.get("OVERREAD_BLOB_ROOT") or home / "blobs").expanduser(),
            inference_url=environment.get("OVERREAD_INFERENCE_URL") or "http://127.0.0.1:8090",
            inference_token=_needed(
                environment, "OVERREAD_INFERENCE_TOKEN", "the secret that the inference process was given"
            ),
            patient_key=_patient_key(environment),
            session_limits=sessions.Limits(
                idle_seconds=_number(environment, "OVERREAD_SESSION_IDLE_SECONDS", default=15 * 60),
                absolute_seconds=_number(environment, "OVERREAD_SESSION_SECONDS", default=8 * 3600),
            ),
            checkpoints=Path(environment.get("OVERREAD_CHECKPOINTS") or home / "checkpoints").expanduser(),
            verifier_key=notes.verifier_path(
                Path(environment.get("OVERREAD_CHECKPOINT_KEY") or home / "checkpoint.key").expanduser()
            ),
            requests_per_second=_number(environment, "OVERREAD_RATE_PER_SECOND", default=1000),
            request_burst=_number(environment, "OVERREAD_RATE_BURST", default=2000),
            oidc=_oidc(environment),
        )


def _needed(environment: Mapping[str, str], name: str, meaning: str) -> str:
    value = environment.get(name, "").strip()
    if not value:
        raise SettingsError(
            f"{name} is not set: {meaning}. `overread up` sets it; elsewhere put it in the environment."
        )
    return value


def _number(environment: Mapping[str, str], name: str, *, default: float) -> float:
    text = environment.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise SettingsError(f"{name} must be a number, 1 or more; it is {text!r}. Leave it out for {default:g}.")
    return value


def _oidc(environment: Mapping[str, str]) -> Oidc | None:
    names = ("OVERREAD_OIDC_ISSUER", "OVERREAD_OIDC_AUDIENCE", "OVERREAD_OIDC_JWKS")
    if not any(environment.get(name) for name in names):
        return None
    issuer, audience, jwks = (_needed(environment, name, "all three of OVERREAD_OIDC_… or none") for name in names)
    url = urlsplit(jwks)
    if "://" in jwks and url.scheme != "https" and url.hostname not in {"127.0.0.1", "::1", "localhost"}:
        raise SettingsError(
            "OVERREAD_OIDC_JWKS must be https://… or a file: whoever can change it can sign in as anyone"
        )
    return Oidc(
        issuer=issuer,
        audience=audience,
        jwks=jwks,
        name_claim=environment.get("OVERREAD_OIDC_NAME_CLAIM") or "sub",
        roles_claim=environment.get("OVERREAD_OIDC_ROLES_CLAIM") or None,
    )


def _patient_key(environment: Mapping[str, str]) -> bytes:
    text = _needed(
        environment, "OVERREAD_PATIENT_KEY", "64 hexadecimal digits, made once with `openssl rand -hex 32` and kept"
    )
    try:
        key = bytes.fromhex(text)
    except ValueError:
        raise SettingsError("OVERREAD_PATIENT_KEY must be hexadecimal: make one with `openssl rand -hex 32`") from None
    if len(key) < 32:
        raise SettingsError(f"OVERREAD_PATIENT_KEY has {len(key) * 8} bits; 256 are needed: `openssl rand -hex 32`")
    return key
