"""The application: who may ask, limits, health, metrics and pages; a task adds its routes.

    application = app.make("separation", "...", pages=FOLDER, settings=Settings(...), health=...)

Pages lie below /page (the task's) and /shared (those of this package), /docs lists the routes.
"""

import contextlib
import logging
import pathlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import fastapi
import fastapi.exceptions
import fastapi.responses
import fastapi.security
import fastapi.staticfiles

from common import errors
from common.serve import guard, measures
from common.serve import settings as serve_settings

log = logging.getLogger(__name__)

PAGES = pathlib.Path(__file__).parent / "page"
# A page uses what this server sends and what it makes itself, and nothing of others.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; media-src 'self' blob:; img-src 'self' blob: "
    "data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class _Pages(fastapi.staticfiles.StaticFiles):
    def file_response(self, *args: Any, **settings: Any) -> Any:
        response = super().file_response(*args, **settings)
        response.headers.update(_PAGE_HEADERS)
        return response


def make(
    title: str,
    description: str,
    *,
    pages: pathlib.Path,
    settings: serve_settings.Settings,
    measured: measures.Measures,
    health: Callable[[], dict[str, Any]],
    work: Callable[[], contextlib.AbstractAsyncContextManager],
) -> fastapi.FastAPI:
    """An application without routes of a task. `work` surrounds all that it serves.

    `health` says what is well; {"status": "..."} other than "ok" makes the answer 503.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        async with work():
            yield

    made = fastapi.FastAPI(
        title=title,
        description=description,
        docs_url=None,  # FastAPI's own page comes from other hosts
        redoc_url=None,
        lifespan=lifespan,
    )
    for kind, answer in _ANSWERS.items():
        made.add_exception_handler(kind, answer)
    made.add_middleware(guard.Guard, settings=settings, measured=measured)

    @made.get("/health", tags=["server"])
    def get_health() -> fastapi.responses.JSONResponse:
        """Whether the server works, and how many streams it has. Needs no token."""
        found = health()
        return fastapi.responses.JSONResponse(found, 200 if found["status"] == "ok" else 503)

    @made.get(
        "/metrics",
        tags=["server"],
        dependencies=TOKEN,
        response_class=fastapi.responses.PlainTextResponse,
    )
    def get_metrics() -> fastapi.Response:
        """Counts and times in Prometheus' form."""
        text, kind = measured.exposition()
        return fastapi.Response(text, media_type=kind)

    @made.get("/", include_in_schema=False)
    def get_page() -> fastapi.responses.RedirectResponse:
        return fastapi.responses.RedirectResponse("page/index.html")

    @made.get("/docs", include_in_schema=False)
    def get_docs() -> fastapi.responses.RedirectResponse:
        return fastapi.responses.RedirectResponse("shared/routes.html")

    made.mount("/page", _Pages(directory=pages))
    made.mount("/shared", _Pages(directory=PAGES))
    return made


# For the list of routes; `guard` compares the token before the body of a request is read.
TOKEN = [fastapi.Depends(fastapi.security.HTTPBearer(auto_error=False))]


async def _answer_user_error(
    request: fastapi.Request, error: errors.UserError
) -> fastapi.responses.JSONResponse:
    return guard.answer(422, str(error))


async def _answer_invalid(
    request: fastapi.Request, error: fastapi.exceptions.RequestValidationError
) -> fastapi.responses.JSONResponse:
    said = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
    return guard.answer(422, "; ".join(said))


async def _answer_failure(
    request: fastapi.Request, error: Exception
) -> fastapi.responses.JSONResponse:
    return guard.answer(500, "this server failed; its log says more")


_ANSWERS = {
    errors.UserError: _answer_user_error,
    fastapi.exceptions.RequestValidationError: _answer_invalid,
    Exception: _answer_failure,
}
