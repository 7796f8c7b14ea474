"""Programs on several simulated devices, which JAX makes when a process starts."""

import json
import os
import subprocess
import sys


def told_by(*arguments, devices=4, timeout=300, **env):
    """What a program of Python says in its last line, in JSON; a warning is an error.

    `arguments` are those of Python, and `env` goes into its environment.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    flags = f"{flags} --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **env},
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
