"""The bucket: can what serves be written, read back, and taken away again?"""

import os
from collections.abc import Iterator

from secateur.errors import InputError
from tasks import bucket
from tasks.cli.doctor import asking
from tasks.cli.doctor.finding import Finding
from tasks.faults import is_io_fault


def check() -> Iterator[Finding]:
    """Write, read, delete a small object, with the options and checksums that versions are stored with."""
    place = os.environ.get("SECATEUR_BUCKET", "")
    try:
        bucket.check()
    except InputError as error:
        yield _sentence(str(error))
        return
    except Exception as error:
        if not is_io_fault(error):
            raise
        yield Finding(
            "fail",
            f"S3 does not answer ({asking.why(error)})",
            "start it, or correct AWS_ENDPOINT_URL_S3 and AWS_CA_BUNDLE",
        )
        return
    yield Finding("ok", f"{place} can be written and read back")
    if not bucket.deletes():
        yield Finding(
            "warn",
            f"nothing in {place} can be deleted by us",
            "allow s3:DeleteObject on champion.json and config.pbtxt: undoing a first promotion takes them away",
        )


def _sentence(text: str) -> Finding:
    what, _, remedy = text.partition("; ")
    return Finding("fail", what, remedy or "correct it")
