"""METEOR 1.5 through its Java program: one process for a whole evaluation, with limits on its time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from threading import Timer
from types import TracebackType
from typing import NoReturn

METEOR_VERSION = "METEOR 1.5 (-l en -norm)"
_ARGUMENTS = ("-", "-", "-stdio", "-l", "en", "-norm")


class Meteor:
    """The jar that pycocoevalcap brings, running until it is closed; a context manager.

    Starting reads a paraphrase table of 62 MB: seconds on an idle machine, minutes on a busy one. A program that
    does not answer in time is killed and a TimeoutError says so; one that ends by itself is a RuntimeError with
    its last words. Neither can be asked again.

    Source: Denkowski and Lavie, Meteor Universal, WMT 2014.
    """

    def __init__(
        self,
        *,
        java: str = "java",
        start_timeout_seconds: float = 600.0,
        answer_timeout_seconds: float = 60.0,
    ) -> None:
        program = shutil.which(java)
        if program is None:
            raise FileNotFoundError(
                f"METEOR was asked for and runs in Java, but there is no program {java!r}: install a Java runtime "
                "(Debian: default-jre-headless), or leave METEOR out"
            )
        jar = _jar()
        self._answer_timeout_seconds = answer_timeout_seconds
        self._timed_out = False
        # a file, since a pipe that nobody reads would fill and stop the program
        self._stderr = TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [program, "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", str(jar), *_ARGUMENTS],
            cwd=jar.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,  # a group of its own, killed as a whole
        )
        try:
            self._ask("SCORE ||| a ||| a", timeout_seconds=start_timeout_seconds)
        except BaseException:
            self.close()
            raise

    def score(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
    ) -> tuple[float, list[float]]:
        """METEOR of the whole set and of each hypothesis, in [0, 1].

        Sentences are tokens with spaces between, `references[i]` those of hypothesis i. The first value is computed
        from the counts of the whole set: it is not the mean of the others.
        """
        counts = [
            self._ask(" ||| ".join(["SCORE", *own, hypothesis]))[0]
            for hypothesis, own in zip(hypotheses, references, strict=True)
        ]
        *scores, whole = map(float, self._ask(" ||| ".join(["EVAL", *counts]), num_lines=len(counts) + 1))
        return whole, scores

    def close(self) -> None:
        """End the program."""
        if self._process.returncode is None:
            self._kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            assert stream is not None
            # what the program never took is lost with it
            with suppress(BrokenPipeError):
                stream.close()

    def __enter__(self) -> Meteor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, line: str, *, num_lines: int = 1, timeout_seconds: float | None = None) -> list[str]:
        seconds = self._answer_timeout_seconds if timeout_seconds is None else timeout_seconds
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        # a dead program ends every wait, for its answer and for it to read
        timer = Timer(seconds, self._time_out)
        timer.start()
        try:
            stdin.write(f"{line}\n".encode())
            stdin.flush()
            answers = [stdout.readline().decode() for _ in range(num_lines)]
        except BrokenPipeError:
            answers = [""]
        finally:
            timer.cancel()
        if not all(answer.endswith("\n") for answer in answers):
            self._fail(line, seconds)
        return [answer.strip() for answer in answers]

    def _fail(self, line: str, seconds: float) -> NoReturn:
        start = line if len(line) <= 200 else f"{line[:200]}..."
        if self._timed_out:
            raise TimeoutError(f"METEOR had no answer after {seconds:g} s to {start!r} and was killed")
        self._stderr.seek(0)
        words = self._stderr.read()[-1000:].decode(errors="replace").strip()
        raise RuntimeError(f"METEOR ended without an answer to {start!r}: {words or 'it said nothing'}")

    def _time_out(self) -> None:
        self._timed_out = True
        self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _jar() -> Path:
    try:
        package = find_spec("pycocoevalcap.meteor")
    except ModuleNotFoundError:
        package = None
    if package is None or package.submodule_search_locations is None:
        raise ImportError("METEOR needs the jar of pycocoevalcap: pip install 'videolm[metrics]'")
    jar = Path(next(iter(package.submodule_search_locations))) / "meteor-1.5.jar"
    if not jar.is_file():
        raise FileNotFoundError(f"{jar} is not there: install pycocoevalcap again (videolm[metrics])")
    return jar
