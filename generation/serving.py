"""A network behind one application: what the servers of all directions of generation share."""

import abc
import asyncio
import concurrent.futures
import contextlib
import pathlib
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import fastapi

from common.serve import app, measures
from common.serve import settings as serve_settings

PAGES = pathlib.Path(__file__).parent / "page"
MOST_SEED = 2**31 - 1
_MOST = 16
_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
Upload = Annotated[fastapi.UploadFile, fastapi.File()]
Count = Annotated[int, fastapi.Form(ge=1, le=_MOST, description="how many, 1 to 16")]
Seed = Annotated[int, fastapi.Form(ge=0, le=MOST_SEED, description="of chance")]


class Service(abc.ABC):
    """A network behind one application; its direction adds the routes.

    `takes` and `gives`, of /health, say to the page which of its parts belong to what is served.
    """

    takes: str
    gives: str
    description: str

    def __init__(self, settings: serve_settings.Settings) -> None:
        self._settings, self._limits = settings, settings.limits
        self.measured = measures.Measures("generation")
        self._times = self.measured.histogram(
            "work_seconds", "From what is given to what is made of it", _SECONDS
        )
        self._streams = 0
        # One after another: the network has all cores for each.
        self._jobs = concurrent.futures.ThreadPoolExecutor(1, "network")

    def application(self) -> fastapi.FastAPI:
        """What `common.serve.running` serves."""
        made = app.make(
            "Generation",
            self.description,
            pages=PAGES,
            settings=self._settings,
            measured=self.measured,
            health=self._health,
            work=self._work,
        )
        self._add_routes(made, {"dependencies": app.TOKEN, "tags": ["generation"]})
        return made

    @abc.abstractmethod
    def _add_routes(self, made: fastapi.FastAPI, about: dict[str, Any]) -> None:
        """Those of the direction; `about` goes to each that is no websocket."""

    async def _job(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._jobs, work, *arguments)

    def _health(self) -> dict[str, Any]:
        about = {"takes": self.takes, "gives": self.gives}
        return {"status": "ok", "streams": self._streams, **about}

    @contextlib.asynccontextmanager
    async def _work(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.to_thread(self._jobs.shutdown, cancel_futures=True)
