"""A service for the supervisor's tests: binds a port, has a grandchild that resists, and does as it is told.

The first argument is a JSON object: port, diary (a file that takes one JSON line an event), name, ignore_term,
fail (an exception's message, raised before anything else), never_ready.
"""

import http.server
import json
import os
import signal
import subprocess
import sys
import time
from types import FrameType

# Its own session and no heed to SIGTERM: nothing but a deliberate SIGKILL ends it.
GRANDCHILD = "import os, signal, time; os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"

settings = json.loads(sys.argv[1])


def note(event: str, **more: object) -> None:
    line = {"event": event, "service": settings["name"], "pid": os.getpid(), "time": time.time(), **more}
    with open(settings["diary"], "a", encoding="utf-8") as diary:
        diary.write(json.dumps(line) + "\n")


def terminated(number: int, frame: FrameType | None) -> None:
    note("term")
    if not settings.get("ignore_term"):
        raise SystemExit(0)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503 if settings.get("never_ready") else 200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


if settings.get("fail"):
    raise ValueError(settings["fail"])
grandchild = subprocess.Popen([sys.executable, "-c", GRANDCHILD])
signal.signal(signal.SIGTERM, terminated)
sys.stderr.write(f"{settings['name']} says hello\n")
note("start", grandchild=grandchild.pid)
http.server.ThreadingHTTPServer.allow_reuse_port = True  # the test holds it, and does not listen
http.server.ThreadingHTTPServer(("127.0.0.1", settings["port"]), Handler).serve_forever()
