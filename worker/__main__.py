"""`python -m worker`: one worker process, configured by `ERASE_*` variables."""

import os
import sys

from worker.settings import SettingsError, load_settings


def main() -> int:
    """Read the settings and serve; 2 when they are wrong."""
    try:
        settings = load_settings()
    except SettingsError as error:
        print(f"erase-serve: {error}", file=sys.stderr)
        return 2
    # Idle threads of a matrix product wait awake for some microseconds, and then sleep: to fall asleep at once costs
    # more than a small product takes, and to stay awake takes the cores from preprocessing, Redis and the service.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    from worker.main import run_worker

    return run_worker(settings)


if __name__ == "__main__":
    sys.exit(main())
