"""Serves a trained network: REST, a websocket for each stream, and a page.

    python -m separation.serve --workdir=runs/separation

For this machine only, unless --host says otherwise; then a token is needed. The page is at /, the
list of routes at /docs, health at /health, figures for Prometheus at /metrics.
"""

import contextlib
import logging

from common import app
from common.serve import settings as serve_settings
from separation import enhancer

log = logging.getLogger(__name__)


def main() -> None:
    """The command line."""
    parser = app.parser("separation.serve", __doc__)
    app.add_run(parser)
    serve_settings.add_arguments(parser)
    args = parser.parse_args()

    def work() -> None:
        serve_settings.check_packages()
        from common.serve import running
        from separation import api

        settings = serve_settings.read(args)
        with contextlib.closing(running.listen(args.host, args.port)) as listening:
            network = enhancer.load(args.workdir, step=args.checkpoint)
            log.info("Compiling for up to %d streams at once.", settings.limits.streams)
            application = api.Service(network, settings).application()
            print(running.url(listening), flush=True)
            running.run(application, listening, settings.limits)

    app.command("separation.serve", work)


if __name__ == "__main__":
    main()
