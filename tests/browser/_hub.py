"""A hub on loopback with a few repositories, which answers as HuggingFace's does as far as a download asks."""

import hashlib
import http.server
import json
import pathlib
import threading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves each folder of `folders` as the repository of its name; `hold` keeps the second half of files back until it is
    released; files of the repositories in `damaged` are sent with one bit turned."""

    def __init__(self, folders, damaged=()):
        self.repositories = {}
        for name, folder in folders.items():
            root = pathlib.Path(folder)
            paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
            self.repositories[name] = {str(path.relative_to(root)): path.read_bytes() for path in paths}
        self.damaged = set(damaged)
        self.hold = threading.Event()
        self.hold.set()

    def __enter__(self):
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, status, body, headers=(), held=False):
                self.send_response(status)
                for key, value in headers:
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                half = len(body) // 2 if held else len(body)
                self.wfile.write(body[:half])
                self.wfile.flush()
                if held:
                    hub.hold.wait(60)
                    self.wfile.write(body[half:])

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                path = self.path.split("?")[0]
                for name, files in hub.repositories.items():
                    if path == f"/api/models/{name}/revision/main":
                        about = {"id": name, "sha": COMMIT, "private": False, "gated": False, "tags": ["license:apache-2.0"]}
                        return self.answer(200, json.dumps(about).encode(), [("Content-Type", "application/json")])
                    if path == f"/api/models/{name}/tree/{COMMIT}":
                        entries = [{"type": "file", "path": file, "size": len(content), "oid": oid(content)} for file, content in files.items()]
                        return self.answer(200, json.dumps(entries).encode(), [("Content-Type", "application/json")])
                    content = files.get(path.removeprefix(f"/{name}/resolve/{COMMIT}/"))
                    if content is not None:
                        headers = [("ETag", f'"{oid(content)}"'), ("X-Repo-Commit", COMMIT), ("Content-Type", "application/octet-stream")]
                        if name in hub.damaged:
                            content = content[:-1] + bytes([content[-1] ^ 1])
                        return self.answer(200, content, headers, held=True)
                return self.answer(404, b"Entry not found")

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
