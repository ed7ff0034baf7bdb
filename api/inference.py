"""The API's way to the inference process: decoding, prediction, heat maps and the check of a protocol.

The API process opens no image and loads no model; it streams bytes over loopback and passes on what comes back. The
inference process's refusals become `Refusal`s under the same slugs; not reaching it becomes `inference-unavailable`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal
from urllib.parse import quote

import httpx

from api.errors import Refusal
from api.settings import ApiSettings

NPY_MEDIA_TYPE = "application/x-npy"
Kind = Literal["image", "volume"]
"""What a line reads."""
_PASSED_ON = frozenset({"no-champion", "unknown-finding"})
"""Codes of the inference process that are the API's slugs as they stand; other refusals of it are of the image."""
_TIMEOUT = httpx.Timeout(30.0, connect=2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """What the jailed decoder returned: the pixels as NPY bytes and the allow-listed attributes of the file."""

    pixels: bytes
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The champion's answer for one image; `scores` maps each class to a probability in [0, 1]."""

    candidate_id: int
    number: int
    weights_digest: str
    scores: dict[str, float]
    decision: str
    operating_point: dict[str, Any] | None
    threshold: float | None
    second_look: bool
    latency_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A protocol that was checked, and each clause of it that is another than before, in words."""

    document: dict[str, Any]
    digest: str
    changes: list[str]


def kind_of(protocol: Mapping[str, Any]) -> Kind:
    """Say what a line reads, from its protocol's document."""
    return "volume" if protocol["input"].get("depth") else "image"


class InferenceClient:
    """One connection pool to the inference process; safe to share between threads."""

    def __init__(self, settings: ApiSettings) -> None:
        self._client = httpx.Client(
            base_url=settings.inference_url,
            headers={"Authorization": f"Bearer {settings.inference_token}"},
            timeout=_TIMEOUT,
            trust_env=False,  # a proxy variable must not lead images out of the machine
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def is_healthy(self) -> bool:
        """Say whether the inference process answers."""
        try:
            return self._client.get("/health", timeout=2.0).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def decode(self, image: IO[bytes], *, media_type: str, kind: Kind = "image") -> DecodedImage:
        """Have an image file decoded in the jail; `kind` is what the line reads.

        Raises Refusal: image-refused, body-too-large.
        """
        response = self._post("/decode", content=image, params={"kind": kind}, headers={"Content-Type": media_type})
        return DecodedImage(
            pixels=response.content, attributes=json.loads(response.headers.get("x-overread-attributes", "{}"))
        )

    def predict(self, line: str, *, pixels: bytes, site: str | None = None) -> Scored:
        """Have an image (NPY bytes) scored by the line's champion, and decided as at `site` where that is known.

        Raises Refusal: no-champion, image-refused.
        """
        path, where = f"/lines/{quote(line, safe='')}/predictions", {} if site is None else {"site": site}
        answer = self._post(path, content=pixels, params=where, headers={"Content-Type": NPY_MEDIA_TYPE}).json()
        return Scored(**{name: answer[name] for name in Scored.__slots__})

    def heat_map(self, line: str, *, pixels: bytes, finding: str, at: int | None = None) -> bytes:
        """Have the champion's reasons drawn over an image: PNG bytes; of a volume over slice `at`, or the middle one.

        Raises Refusal as `predict` does.
        """
        path, asked = f"/lines/{quote(line, safe='')}/heat-map", {"finding": finding}
        asked |= {} if at is None else {"slice": str(at)}
        return self._post(path, content=pixels, params=asked, headers={"Content-Type": NPY_MEDIA_TYPE}).content

    def check_protocol(self, text: bytes) -> tuple[dict[str, Any], str]:
        """Have a protocol checked: its normalised document and digest. Raises Refusal: protocol-invalid."""
        answer = self._post("/protocols/check", content=text, headers={"Content-Type": "application/yaml"}).json()
        return answer["document"], answer["digest"]

    def compare_protocol(self, text: str, *, before: dict[str, Any]) -> Compared:
        """Have a protocol checked and compared with an earlier document. Raises Refusal: protocol-invalid."""
        answer = self._post("/protocols/compare", json={"text": text, "before": before}).json()
        return Compared(**{name: answer[name] for name in Compared.__slots__})

    def _post(self, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._client.post(path, **options)
        except httpx.HTTPError as error:
            raise _unavailable(type(error).__name__) from error
        if response.is_success:
            return response
        raise _refusal(response)


def _refusal(response: httpx.Response) -> Refusal:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not response.is_client_error:
        return _unavailable(f"it answered {response.status_code}")
    if "errors" in answer:
        wrong = answer["errors"]
        summary = "; ".join(f"{item['field']}: {item['message']}" for item in wrong)
        return Refusal("protocol-invalid", f"The protocol is not valid: {summary}", errors=wrong)
    code, message = str(answer.get("code", "")), answer.get("message")
    if code in _PASSED_ON:
        return Refusal(code, message)
    if response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        return Refusal("body-too-large", message)
    if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
        return Refusal("image-refused", message, reason=code)
    return _unavailable(f"it answered {response.status_code}")


def _unavailable(reason: str) -> Refusal:
    return Refusal(
        "inference-unavailable", f"The inference process could not do this just now ({reason}). Try again shortly."
    )
