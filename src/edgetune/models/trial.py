"""A tokenizer file tried in a limited process: some panic, abort or never end, and must not take this one with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgetune.core.errors import ModelError
from edgetune.core.limited import allow, limit, ran_out_of_time, start

LARGEST = 256 << 20
"""Bytes of a tokenizer file; the largest in use have some 40 million."""
MEMORY = 2 << 30
SECONDS = 4
"""Processor seconds for loading and probing; one more for every 5 MB of the file."""
PROBES = (
    "In 2023 and 2024 they sold 650841823 of 1,000 units.",
    "I'm sure they'll say it's what we've DON'T you'd HE'S",
    " leading,  double   triple spaces and a trailing one ",
    "lines\nand\n\nmore\r\n\ttabs\n  \n indented",
    "中文分词和日本語の文章、한국어 ภาษาไทย",
    "cafe\u0301 naïve ǅ İ ﬁ ① 😀🇩🇪",
    "camelCase HTTPServer snake_case x==y; // $5.00 (a)[b]{c} <tag/> http://a.b/c?d=e",
    "\u00a0no-break\u200bzero\u3000wide",
)
"""Texts on which tokenizers that are not the same one differ."""


def try_tokenizer(file: Path) -> None:
    """Load a `tokenizer.json` and encode `PROBES` with it, in a process that may fail.

    Raises:
        ModelError: the file is too large, not a tokenizer, panics, aborts, takes too long or too much memory.
    Cost: 0.1 s and the time to load the file.
    """
    size = file.stat().st_size
    if size > LARGEST:
        raise ModelError(f"a tokenizer of {size} bytes", where=file, hint="copy it again")
    try:
        process = start("edgetune.models.trial", "main")
    except OSError as error:
        raise ModelError(f"no process to try the tokenizer in: {error.strerror}", where=file) from error
    request = {"file": str(file.absolute()), "seconds": SECONDS + size // 5_000_000}
    answer, _ = process.communicate(json.dumps(request).encode("ascii"))
    if process.returncode or not answer:
        why = "does not end" if ran_out_of_time(process.returncode) else "breaks the tokenizers library"
        raise ModelError(f"this tokenizer {why}", where=file, hint="copy it again")
    failure = json.loads(answer)
    if failure is not None:
        raise ModelError(f"cannot use this tokenizer: {failure}", where=file)


def main() -> None:
    """Try the file named on standard input; write why it fails, or null."""
    request = json.loads(sys.stdin.buffer.read())
    limit(MEMORY)
    allow(request["seconds"])
    failure = None
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(request["file"])
        tokenizer.no_truncation()
        tokenizer.no_padding()
        for probe in PROBES:
            tokenizer.decode(tokenizer.encode(probe).ids)
        tokenizer.to_str()
    except BaseException as error:  # a panic of the library is no Exception
        failure = next(iter(str(error)[:300].splitlines()), "") or type(error).__name__
    sys.stdout.write(json.dumps(failure))
