"""`python -m service`: one HTTP process, configured by `ERASE_*` variables."""

import sys

from worker.logs import configure_logging
from worker.settings import SettingsError, load_settings


def main() -> int:
    """Read the settings and serve until SIGTERM; 2 when they are wrong."""
    try:
        settings = load_settings()
    except SettingsError as error:
        print(f"erase-serve: {error}", file=sys.stderr)
        return 2
    configure_logging(settings)
    import uvicorn

    from service.app import create_app
    from service.connections import BoundedConnection

    try:
        app = create_app(settings)
    except (OSError, ValueError) as error:
        print(f"erase-serve: {error}", file=sys.stderr)
        return 2
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        http=BoundedConnection,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(settings.drain_s),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
