"""The API process, put together: settings in, an ASGI application out.

    uvicorn --factory api.app:serve --host 127.0.0.1 --port 8080

It imports the record and nothing heavier: no torch, Celery, MLflow, DVC or image decoder. Work is asked for by job
rows, predictions by calling the inference process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api import errors, pages
from api.auth import ROLES_KEY, SECURITY_SCHEMES
from api.console import pages as console
from api.inference import InferenceClient
from api.limits import Buckets
from api.live import Live, close_with_process
from api.middleware import AddHeaders, LimitBody
from api.settings import ApiSettings, SettingsError
from api.sign_in import SignIn
from api.v1 import (
    adjudications,
    amendments,
    audit,
    bulk,
    candidates,
    cases,
    comments,
    confirmations,
    datasets,
    exports,
    health,
    jobs,
    lines,
    predictions,
    promotions,
    rejections,
    runs,
    session,
    worklist,
)
from registry import db

if TYPE_CHECKING:
    from api.oidc import Provider

ROUTERS = tuple(
    module.router
    for module in (
        cases, worklist, confirmations, bulk, adjudications, predictions, rejections, lines, runs, datasets, candidates,
        comments, promotions, amendments, exports, jobs, audit, session, health,
    )
)  # fmt: skip

TAGS = {
    "Cases": "Images in: de-identified, content-addressed, ready to be read and learnt from.",
    "Worklists": "What to confirm next, and why.",
    "Confirmations": "Confirmed diagnoses in: append-only, one by one or in bulk; and who decides where they differ.",
    "Predictions": "What the champion says of an image.",
    "Lines": "The questions that are answered, and the protocol of each.",
    "Runs": "Learning: a dataset version, a training, a verdict.",
    "Dataset versions": "What models were made from and measured on.",
    "Candidates": "Trained models, their gate reports, the signatures on them.",
    "Promotions": "Which model was champion, from when to when.",
    "Jobs": "The work behind it, for operators.",
    "Audit": "Everything that was changed, in order.",
    "Session": "People sign in with a password, and stay signed in for a while.",
    "Health": "Is it alive, can it work?",
}


def create_app(settings: ApiSettings) -> FastAPI:
    """Build the application; its connections open when it starts and close when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings.blob_root.mkdir(parents=True, exist_ok=True)
        app.state.settings = settings
        app.state.inference = InferenceClient(settings)
        with db.pool(
            settings.database_url,
            maximum=settings.pool_size,
            statement_seconds=settings.statement_seconds,
            lock_seconds=settings.lock_seconds,
        ) as pool:
            app.state.pool = pool
            app.state.live = Live(pool, limits=settings.session_limits)
            close_with_process(app.state.live)
            app.state.sign_in = SignIn(pool)
            app.state.provider = _provider(settings)
            app.state.rates = Buckets(per_second=settings.requests_per_second, burst=settings.request_burst)
            yield
        app.state.inference.close()

    app = FastAPI(
        title="Overread",
        version=_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # clients are generated from these names
    )
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
    for router in ROUTERS:
        app.include_router(router)
    app.include_router(pages.router)
    for router in console.ROUTERS:
        app.include_router(router)
    errors.install(app)
    app.add_middleware(LimitBody)
    app.add_middleware(AddHeaders)  # outermost: refusals of the one above carry the headers too
    return app


def serve() -> FastAPI:
    """Build the application from the environment; what `uvicorn --factory api.app:serve` calls."""
    try:
        return create_app(ApiSettings.from_environment(os.environ))
    except SettingsError as error:
        sys.exit(f"The API cannot start: {error}")


def describe(app: FastAPI) -> dict[str, Any]:
    """Write the OpenAPI document: FastAPI's, with the roles of each operation and the table of problem types."""
    if app.openapi_schema is None:
        document = get_openapi(
            title="Overread API",
            version=app.version,
            description=_description(),
            routes=app.routes,
            tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        )
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"] = dict(sorted(operation["responses"].items()))
                for parameter in operation.get("parameters", ()):
                    # Optional only to FastAPI, so that its absence is a refusal of our own.
                    parameter["required"] |= parameter["name"] == "Idempotency-Key"
                if roles := operation.get(ROLES_KEY):
                    operation["description"] += f"\n\nNeeds the role {' or '.join(f'`{role}`' for role in roles)}."
        for kind, known in {**errors.components(), "securitySchemes": SECURITY_SCHEMES}.items():
            document["components"].setdefault(kind, {}).update(known)
        app.openapi_schema = document
    return app.openapi_schema


def _description() -> str:
    problems = "\n".join(
        f"| `{problem.slug}` | {problem.status} | {problem.meaning} |"
        for problem in sorted(errors.PROBLEMS.values(), key=lambda problem: (problem.status, problem.slug))
    )
    return (
        "A second reader for diagnostic images that learns from every confirmed diagnosis, and changes only with "
        "evidence. Not a medical device.\n\n"
        "Send images to `/v1/cases` and what was confirmed of them to `/v1/cases/{case_id}/confirmations`, or in bulk "
        "to `/v1/confirmations`; ask for scores at `/v1/predictions`. Everything else is about how a model earns its "
        "place.\n\n"
        "Every request under `/v1` carries `Authorization: Bearer ovr_…`, or the cookie of a session. Times are RFC "
        "3339 with an offset, probabilities are 0 to 1, digests are SHA-256 in hexadecimal.\n\n"
        "A refusal is `application/problem+json` (RFC 9457). Its `type` is `/problems/` and one of these, which never "
        "change their meaning:\n\n"
        f"| type | status | meaning |\n|---|---|---|\n{problems}"
    )


def _provider(settings: ApiSettings) -> Provider | None:
    if settings.oidc is None:
        return None
    from api.oidc import Provider  # noqa: PLC0415 - few have one, and its cryptography takes time to import

    return Provider(settings.oidc)


def _version() -> str:
    try:
        return version("overread")
    except PackageNotFoundError:  # run from a bare checkout
        return "0.1.0"
