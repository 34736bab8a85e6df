"""``python -m ridgeline.bench``: some of the benchmarks where typer and rich are not installed."""

import sys

from ridgeline.bench import commands, options


def main() -> None:
    """An error that names its culprit is shown as one line, not as a traceback."""
    try:
        options.run("python -m ridgeline.bench", commands.COMMANDS, sys.argv[1:])
    except (ValueError, TypeError, OSError) as e:
        sys.exit(f"ridgeline.bench: error: {e}")


if __name__ == "__main__":
    main()
