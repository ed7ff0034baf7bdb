"""The two pages without a key: what this is, and the API reference, written from the OpenAPI document.

Plain HTML made here, with no script and nothing from elsewhere: hospital networks reach no CDN.
"""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from api.auth import ROLES_KEY

router = APIRouter(include_in_schema=False)

_STYLE = (
    "body{font:16px/1.55 system-ui,sans-serif;max-width:54rem;margin:2rem auto;padding:0 1rem}"
    "body{color:#1c2733;background:#fff}"
    "code,pre{font:14px/1.5 ui-monospace,monospace;background:#f2f5f8;border-radius:4px;padding:.1em .3em}"
    "pre{padding:.7rem;overflow-x:auto}a{color:#0b5cad}summary{cursor:pointer;padding:.35rem 0}"
    "summary b{display:inline-block;min-width:3.5rem}details{border-top:1px solid #dde4ea}"
    "details>:not(summary){margin-left:1rem}table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;"
    "padding:.25rem .8rem .25rem 0}@media(prefers-color-scheme:dark){body{color:#dce3ea;background:#12181f}"
    "code,pre{background:#1d2630}a{color:#7cb8f2}details{border-color:#2b3743}}"
)


@router.get("/", response_class=HTMLResponse)
def root() -> str:
    """Say what this is and where to go on."""
    return _page(
        "Overread",
        "<h1>Overread</h1><p>A second reader for diagnostic images that learns from every confirmed diagnosis, and "
        "changes only with evidence.</p><ul><li><a href='/console'>Console</a>, where people work</li>"
        "<li><a href='/docs'>API reference</a>, for people</li>"
        "<li><a href='/openapi.json'>openapi.json</a>, for programs</li>"
        "<li><a href='/health/ready'>Is it ready?</a></li></ul><p>Not a medical device.</p>",
    )


@router.get("/docs", response_class=HTMLResponse)
def reference(request: Request) -> str:
    """Show every operation of the API: what it does, who may, what it takes, and how it refuses."""
    document = request.app.openapi()
    parts = [f"<h1>{escape(document['info']['title'])}</h1>", _prose(document["info"]["description"])]
    for tag in document["tags"]:
        parts.append(f"<h2>{escape(tag['name'])}</h2>{_prose(tag['description'])}")
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation["tags"]:
                    parts.append(_operation(path, method, operation))
    return _page("Overread API", "".join(parts))


def _page(title: str, body: str) -> str:
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style><body>{body}</body></html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        _row(f"{item['name']} ({item['in']})", item.get("description", ""), item["schema"])
        for item in operation.get("parameters", ())
    )
    taken = ", ".join(f"<code>{escape(kind)}</code>" for kind in operation.get("requestBody", {}).get("content", ()))
    roles = ", ".join(operation.get(ROLES_KEY, ())) or "anyone, without a key"
    answers = "".join(
        f"<tr><td>{status}<td>{_inline(answer['description'])}{_slugs(answer)}"
        for status, answer in operation["responses"].items()
    )
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> {escape(operation['summary'])}"
        "</summary>"
        f"{_prose(operation['description'])}<p>Roles: {escape(roles)}</p>"
        + (f"<p>Body: {taken}</p>" if taken else "")
        + (f"<table>{rows}</table>" if rows else "")
        + f"<table><tr><th>Status<th>Meaning{answers}</table></details>"
    )


def _row(name: str, description: str, schema: dict[str, Any]) -> str:
    example = next(iter(schema.get("examples", ())), None)
    shown = f" For example <code>{escape(str(example))}</code>." if example is not None else ""
    return f"<tr><td><code>{escape(name)}</code><td>{_inline(description)}{shown}"


def _slugs(answer: dict[str, Any]) -> str:
    slugs = [slug for content in answer.get("content", {}).values() for slug in content.get("examples", ())]
    return "<br>" + ", ".join(f"<code>{escape(slug)}</code>" for slug in slugs) if slugs else ""


def _prose(text: str) -> str:
    return "".join(_block(block) for block in text.split("\n\n"))


def _block(block: str) -> str:
    if block.startswith("| "):
        rows = [line.strip("| ").split(" | ") for line in block.splitlines() if not line.startswith("|--")]
        return "<table>" + "".join("<tr><td>" + "<td>".join(_inline(cell) for cell in row) for row in rows) + "</table>"
    return f"<p>{_inline(block)}</p>"


def _inline(text: str) -> str:
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))
