"""Where a run's files are: a folder of this machine, or the URL of one elsewhere."""

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from steerlens.errors import SteerlensError

__all__ = ["place"]


def place(said: str | Path) -> Path | str:
    """A path for what this machine reaches by path, else the URL.

    >>> str(place("file:///tmp/plan")), place("s3://bucket/plan/")
    ('/tmp/plan', 's3://bucket/plan')

    Raises:
        SteerlensError: A ``file`` URL of another machine.
    """
    text = str(said)
    if "://" not in text:
        return Path(said)
    parts = urlsplit(text)
    if parts.scheme != "file":
        return text.rstrip("/")
    if parts.netloc not in ("", "localhost"):
        raise SteerlensError(
            f"{text} names a file of the machine {parts.netloc}; give a folder of this one, "
            "file:///… with three slashes, or an object store"
        )
    return Path(url2pathname(parts.path))
