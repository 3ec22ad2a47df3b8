"""GET /: the page in the browser, and its files below /page/."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI, Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles

if TYPE_CHECKING:
    import os

    from starlette.types import Scope

FOLDER = Path(__file__).parents[1] / "page"
MOUNTED_AT = "/page"
# The system's table of types is not asked: what it says of .js differs from machine to machine.
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class PageFiles(StaticFiles):
    """The page's files. Browsers keep them but ask each time, so an upgrade never mixes old files with new ones."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder)
        # By content: files of two versions can have the same time and length, the default's ingredients.
        self._tags = {path.resolve(): _tag(path) for path in folder.iterdir() if path.suffix in MEDIA_TYPES}

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Answer with one file, or with 304 when the client has it."""
        path = Path(full_path)
        if path.resolve() not in self._tags:
            raise HTTPException(404)
        headers = {"etag": self._tags[path.resolve()], "cache-control": "no-cache", **SECURITY_HEADERS}
        media_type = MEDIA_TYPES[path.suffix]
        response = FileResponse(path, status_code, headers, media_type, stat_result=stat_result)
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response


def install(app: FastAPI) -> None:
    """Serve the page at `/` of `app`, its files below `/page/`."""
    files = PageFiles(FOLDER)
    router = APIRouter(tags=["page"])

    @router.get("/", response_class=HTMLResponse)
    async def page(request: Request) -> Response:
        """Show the page: one question, answered dense and sparse side by side, and live charts."""
        return await files.get_response("index.html", request.scope)

    app.include_router(router)
    app.mount(MOUNTED_AT, files, name="page")


def _tag(path: Path) -> str:
    return f'"{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}"'
