"""What all answers have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr


def shown_as(example: dict[str, Any]) -> ConfigDict:
    """Give a model its example in the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": [example]})


class View(BaseModel):
    """An answer, read from a row of the record."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


class Request(BaseModel):
    """Something a client sends; a field it does not know is an error, not a silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256, 64 hexadecimal digits")]
Reason = Annotated[
    str, Field(min_length=1, max_length=2000, description="Why, in a sentence that an auditor will understand")
]
Password = Annotated[
    SecretStr,
    Field(min_length=1, max_length=200),
    # What is secret already is not stripped: blanks at the ends of a password are part of it.
    BeforeValidator(lambda value: SecretStr(value) if isinstance(value, str) else value),
]
