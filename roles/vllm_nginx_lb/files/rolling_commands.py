# SPDX-License-Identifier: Apache-2.0
"""Run the command of rolling.yml for all nodes of a batch at the same time, on the machine that runs Ansible.

Standard input is JSON: `command`, for the shell, and `nodes`, a dict of environment variables for each node, by name.
Standard output is JSON: for each node its `code` and the last lines of its `output`. If this program is ended, it ends
the commands too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile

LAST_LINES = 20


def main() -> None:
    """Run the commands; print what became of them."""
    asked = json.load(sys.stdin)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    running = {}
    try:
        for name, variables in asked["nodes"].items():
            # A file and not a pipe: nobody reads while the commands run, and a full pipe would stop them.
            output = tempfile.TemporaryFile()  # noqa: SIM115 - open until its command has ended
            command = ["/bin/sh", "-c", asked["command"]]
            environment = os.environ | variables
            streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
            running[name] = subprocess.Popen(command, env=environment, **streams), output
        results = [{"node": name, "code": process.wait()} for name, (process, _) in running.items()]
        for result in results:
            running[result["node"]][1].seek(0)
            lines = running[result["node"]][1].read().decode(errors="replace").splitlines()
            result["output"] = "\n".join(lines[-LAST_LINES:])
        print(json.dumps(results))
    finally:
        for process, output in running.values():
            process.terminate()
            output.close()


if __name__ == "__main__":
    main()
