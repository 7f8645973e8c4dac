"""A PostgreSQL server to try the examples on, until Ctrl-C. It prints the DSN to call them with.

    uv run examples/serve.py

The server comes with the extra ``tocsin[embedded]``; its data stays in the directory that is printed too.
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
