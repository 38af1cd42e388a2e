"""Kills its own process, a node or the driver at an exact moment of a run, or fails its writes, when an order says so.

Put on PYTHONPATH of the raylets and the driver, so that Python loads it at start. It sees what the product does through
`sys.addaudithook` (files opened and renamed) and needs nothing of it. `CHAOS_FOLDER` holds `order.json` (what to do),
`pids.json` (who can be killed), `writers/` (who has written to a run, for kills from outside) and `hit.json` (what was
done); below `CHAOS_RUN` are the run directories. Without both it does nothing.
"""

import contextlib
import errno
import json
import os
import random
import re
import signal
import sys
import threading
import time
from pathlib import Path

FOLDER, RUN = os.environ.get("CHAOS_FOLDER", ""), os.environ.get("CHAOS_RUN", "")
_TEMPORARY = re.compile(r"/(responses|quarantine)/\.shard-[^/]*\.tmp$")
_SHARD = re.compile(r"/(responses|quarantine)/shard-[^/]*\.parquet$")
_ATTEMPT = re.compile(r"/attempts/shard-[^/]*\.json$")
_RECORD_TEMPORARY = re.compile(r"/\.run\.json\.[^/]*\.tmp$")
_RECORD = re.compile(r"/run\.json$")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Hook:
    """The state of this process: how many moments it has seen, and what it waits for."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self.own = threading.local()  # what the hook itself opens is no event
        self.timer: threading.Timer | None = None
        self.chance = random.Random(f"{os.environ.get('CHAOS_SEED', '')}-{os.getpid()}")
        self.is_registered = False
        self.role = "actor" if any("default_worker" in word for word in sys.orig_argv) else "driver"

    def __call__(self, event: str, args: tuple) -> None:
        if event not in ("open", "os.rename") or getattr(self.own, "is_busy", False):
            return
        path = args[0] if event == "open" else args[1]
        if not isinstance(path, str) or not path.startswith(RUN):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITING):
            return
        self.own.is_busy = True
        try:
            self.look(event, path)
        finally:
            self.own.is_busy = False

    def look(self, event: str, path: str) -> None:
        if not self.is_registered:
            self.is_registered = True
            with contextlib.suppress(OSError):
                Path(f"{FOLDER}/writers/{self.role}-{os.getpid()}").touch()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        order = read(f"{FOLDER}/order.json")
        if order is None or Path(f"{FOLDER}/hit.json").exists():
            return
        if order["moment"] == "failing writes":
            if self.chance.random() < 0.5:
                append(f"{FOLDER}/failed.jsonl", {"path": path, "event": event, "pid": os.getpid()})
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
        self.strike(order, event, path)

    def strike(self, order: dict, event: str, path: str) -> None:
        """Do what the order says if this event is its moment."""
        wanted = {
            "generation": ("os.rename", _ATTEMPT),
            "temporary write": ("open", _TEMPORARY),
            "commit": ("os.rename", _SHARD),
            "run.json update": ("os.rename", _RECORD) if "rename" in order["point"] else ("open", _RECORD_TEMPORARY),
        }[order["moment"]]
        if event != wanted[0] or not wanted[1].search(path):
            return
        self.seen[order["moment"]] = self.seen.get(order["moment"], 0) + 1
        if self.seen[order["moment"]] <= order["skip"]:
            return
        if order["moment"] == "generation":
            # The attempt is written down, and the engine begins. The next file this process opens ends the moment.
            self.timer = threading.Timer(order["delay_s"], self.kill, (order, path))
            self.timer.daemon = True
            self.timer.start()
        elif order["point"] in ("open", "before rename"):
            self.kill(order, path)
        else:
            name = {"write": "write", "fsync": "fsync"}.get(order["point"], "replace")
            sys.setprofile(watcher(self, order, path, name))

    def kill(self, order: dict, path: str) -> None:
        """Kill the victim, once among all processes."""
        self.own.is_busy = True
        try:
            with Path(f"{FOLDER}/hit.json").open("x") as stream:
                stream.write(
                    json.dumps({**order, "path": path, "pid": os.getpid(), "role": self.role, "at": time.time()})
                )
        except FileExistsError:
            self.own.is_busy = False
            return
        if order["victim"] == "node":
            os.kill(os.getppid(), signal.SIGKILL)  # a worker's parent is its raylet
            self.own.is_busy = False
            return
        if order["victim"] == "driver" and self.role != "driver":
            os.kill(read(f"{FOLDER}/pids.json")["driver"], signal.SIGKILL)
            self.own.is_busy = False
            return
        os.kill(os.getpid(), signal.SIGKILL)


def watcher(hook: Hook, order: dict, path: str, name: str):
    """Return a profile function that strikes when this thread calls a function of C of that name.

    After a rename it strikes when the Python function around the call returns: the call itself was not seen to begin.
    """

    def watch(frame: object, event: str, function: object) -> None:
        if order["point"] == "after rename":
            is_it = event == "return" and frame.f_code.co_name == name
        else:
            is_it = event == "c_call" and function.__name__ == name
        if is_it:
            sys.setprofile(None)
            hook.kill(order, path)

    return watch


def read(path: str) -> dict | None:
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None


def append(path: str, line: dict) -> None:
    with Path(path).open("a") as stream:
        stream.write(json.dumps(line) + "\n")


if FOLDER and RUN:
    sys.addaudithook(Hook())
