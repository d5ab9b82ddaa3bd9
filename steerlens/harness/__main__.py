"""lm-eval's command line with the model ``steerlens``: ``python -m steerlens.harness run …``."""

import sys

from steerlens.errors import SteerlensError
from steerlens.harness.registration import register


def main() -> None:
    """Register the model, then do what ``lm-eval`` does."""
    try:
        register()
    except SteerlensError as error:
        sys.exit(f"steerlens: {error}")
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
