"""A download from loopback beside curl followed by sha256sum, which fetch and hash too.

    python -m tests.bench.download             # 1 GB of random bytes, 5 rounds; needs curl and sha256sum

Every round runs the ways one after the other; figures are medians of the rounds, ratios of the same round.
"""

import argparse
import http.server
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jax_edm2.converter import processes
from jax_edm2.converter.downloads.cache import Cache, sha256
from jax_edm2.converter.downloads.download import fetch


def measure(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def serve(path: str, port_file: str):
    """Serve one file, from a separate process, as fast as the kernel copies it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            with open(path, "rb") as file:
                self.send_response(200)
                self.send_header("ETag", '"v1"')
                self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
                self.end_headers()
                self.wfile.flush()
                self.connection.sendfile(file)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Path(port_file).write_text(str(server.server_port))
    server.serve_forever()


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.bench.download", description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, port = folder / "data", folder / "port"
        with open(data, "wb") as file:
            for _ in range(args.megabytes):
                file.write(os.urandom(10**6))
        code = f"from tests.bench.download import serve; serve({str(data)!r}, {str(port)!r})"
        server = subprocess.Popen(processes.python(code))
        while (server.poll() is None and not port.exists()) or not port.read_text():
            time.sleep(0.01)
        url = f"http://127.0.0.1:{port.read_text()}/x.pkl"
        copy = folder / "copy"

        def ours():
            return fetch(url, Cache(folder / "cache"))

        ways = {
            "edm2-convert's download": ours,
            "curl": lambda: subprocess.run(["curl", "-s", "-o", copy, url], check=True),
            "sha256sum": lambda: subprocess.run(["sha256sum", copy], check=True, stdout=subprocess.DEVNULL),
        }
        seconds = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, function in ways.items():
                os.sync()  # what the last way left to be written
                seconds[way].append(measure(function))
            if sha256(ours()) != sha256(data):
                sys.exit("the download is not what was served")
            for path in (folder / "cache").iterdir():
                path.unlink()
        server.kill()
        seconds["curl, then sha256sum"] = [
            sum(pair) for pair in zip(seconds["curl"], seconds["sha256sum"], strict=True)
        ]
        print(f"{args.megabytes} MB, median of {args.rounds} rounds")
        for way, found in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(found, seconds["edm2-convert's download"], strict=True))
            print(f"{way:24}{args.megabytes / statistics.median(found):8.0f} MB/s{ratio:8.2f} of our time")


if __name__ == "__main__":
    main()
