"""A hub on loopback with one repository, which answers as HuggingFace's does as far as a download asks."""

import hashlib
import http.server
import json
import pathlib
import threading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves the files of a folder as the repository `name`; `hold` keeps file contents back until it is released."""

    def __init__(self, name, folder):
        self.name = name
        root = pathlib.Path(folder)
        self.files = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        self.hold = threading.Event()
        self.hold.set()

    def __enter__(self):
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, status, body, headers=()):
                self.send_response(status)
                for key, value in headers:
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                path = self.path.split("?")[0]
                if path == f"/api/models/{hub.name}/revision/main":
                    about = {"id": hub.name, "sha": COMMIT, "private": False, "gated": False, "tags": ["license:apache-2.0"]}
                    return self.answer(200, json.dumps(about).encode(), [("Content-Type", "application/json")])
                if path == f"/api/models/{hub.name}/tree/{COMMIT}":
                    entries = [
                        {"type": "file", "path": name, "size": len(content), "oid": oid(content)} for name, content in hub.files.items()
                    ]
                    return self.answer(200, json.dumps(entries).encode(), [("Content-Type", "application/json")])
                start = f"/{hub.name}/resolve/{COMMIT}/"
                content = hub.files.get(path[len(start) :]) if path.startswith(start) else None
                if content is None:
                    return self.answer(404, b"Entry not found")
                hub.hold.wait(60)
                headers = [("ETag", f'"{oid(content)}"'), ("X-Repo-Commit", COMMIT), ("Content-Type", "application/octet-stream")]
                return self.answer(200, content, headers)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.hold.set()
        self.server.shutdown()


def oid(content):
    """Git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
