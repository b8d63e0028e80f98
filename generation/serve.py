"""Serves a trained network: faces of voices, live too, voices of faces, or words in other voices.

    python -m generation.serve --workdir=runs/faces

For this machine only, unless --host says otherwise; then a token is needed. The page is at /, the
list of routes at /docs, health at /health, figures for Prometheus at /metrics. Faces and voices are
guesses: one tells little of the other.
"""

import contextlib
from collections.abc import Sequence

from common import app
from common.serve import settings as serve_settings
from generation import load


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = app.parser("generation.serve", __doc__)
    app.add_run(parser)
    serve_settings.add_arguments(parser)
    args = parser.parse_args(argv)

    def work() -> None:
        serve_settings.check_packages()
        from common.serve import running
        from generation import api

        settings = serve_settings.read(args)
        with contextlib.closing(running.listen(args.host, args.port)) as listening:
            network = load(args.workdir, step=args.checkpoint)
            application = api.service(network, settings).application()
            print(running.url(listening), flush=True)
            running.run(application, listening, settings.limits)

    app.command("generation.serve", work)


if __name__ == "__main__":
    main()
