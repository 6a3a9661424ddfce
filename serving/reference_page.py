"""``/docs``: the API's description as a page in the browser.

Swagger UI comes with an installed package, and the page may load nothing from elsewhere. It knows nothing of what the
routes do.
"""

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import FileResponse, HTMLResponse, Response

PACKAGE = "fastapi_offline"
FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
HEADERS = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self' 'unsafe-inline'",  # Swagger UI writes style attributes
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "referrer-policy": "no-referrer",
}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Nearline API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="reference"></div>
<noscript>This page needs JavaScript. The same is in <a href="openapi.json">openapi.json</a>.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  validatorUrl: null,
});
"""
"""``validatorUrl``: by default Swagger UI shows the description to a public validator."""

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def page() -> Response:
    """The page. Its addresses are relative, so that it works behind a prefix, too."""
    return HTMLResponse(PAGE, headers=HEADERS)


@router.get("/docs/start.js")
async def start() -> Response:
    """What starts Swagger UI; a file of its own, since the page allows no script within it."""
    return Response(START, media_type="text/javascript")


def _file(name: str) -> Response:
    return FileResponse(str(files(PACKAGE) / "static" / name), media_type=FILES[name])


@router.get("/docs/swagger-ui-bundle.js")
async def script() -> Response:
    """Swagger UI itself."""
    return _file("swagger-ui-bundle.js")


@router.get("/docs/swagger-ui.css")
async def style() -> Response:
    """How it looks."""
    return _file("swagger-ui.css")
