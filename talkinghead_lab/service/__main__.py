"""`python -m talkinghead_lab.service`: run the HTTP service on HOST and PORT."""

import sys
from contextlib import suppress

from talkinghead_lab.errors import MissingExtra, OutputError, TalkingHeadError


def main() -> int:
    """Serve until a signal stops the process; returns exit status 2 if a setting is invalid."""
    try:
        serve()
    except TalkingHeadError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def serve() -> None:
    """Read the settings and run the server.

    Raises:
        MissingExtra: the packages of the extra `service` are not installed.
        InvalidRequest: a setting is invalid.
        OutputError: the output folder cannot be created.
    """
    try:
        from talkinghead_lab.foundation.threads import prepare_threads, share_malloc_arenas

        prepare_threads()
        share_malloc_arenas()
        from uvicorn.config import STARTUP_FAILURE

        from talkinghead_lab.service.app import create_app
        from talkinghead_lab.service.server import ConnectionLimits, make_server, max_connections
        from talkinghead_lab.service.settings import ServiceSettings
        from talkinghead_lab.service.telemetry import log_to_stderr
        from talkinghead_lab.service.watchdog import watch
    except ModuleNotFoundError as error:
        remedy = "pip install 'talkinghead_lab[service]'"
        raise MissingExtra(
            "the service needs packages that are not installed", received=error.name, remedy=remedy
        ) from None
    settings = ServiceSettings.read()
    try:
        settings.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder OUTPUT_DIR cannot be created ({error.strerror})", received=str(settings.output_dir)
        ) from None
    token = settings.token.get_secret_value() if settings.token else ""
    log_to_stderr(settings.log_format, [token])
    app = create_app(settings)
    service = app.state.service
    watch(service.trouble, service.jobs.give_up, resumed=service.resumed)
    limits = ConnectionLimits(settings.body_seconds, max_connections())
    server = make_server(app, settings.host, settings.port, limits, service.jobs.begin_to_close)
    with suppress(KeyboardInterrupt):  # raised again after the shutdown
        server.run()
    if not server.started:
        raise SystemExit(STARTUP_FAILURE)


if __name__ == "__main__":
    sys.exit(main())
