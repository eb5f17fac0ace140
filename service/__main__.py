"""`python -m service`: one HTTP process, configured by `ERASE_*` variables."""

import sys

from worker.settings import SettingsError, load_settings


def main() -> int:
    """Read the settings and serve until SIGTERM; 2 when they are wrong."""
    try:
        settings = load_settings()
    except SettingsError as error:
        print(f"erase-serve: {error}", file=sys.stderr)
        return 2
    import uvicorn

    from service.app import create_app

    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        timeout_graceful_shutdown=int(settings.drain_s),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
