"""Reads the ``console`` blocks of a page and compares what is printed there with what comes back.

In a block, ``h1# vxnet ls`` is typed as root on host h1, a line ``# ls`` is typed into the program that this started
(a shell in a container), a backslash at the end goes on in the next line, and everything else is what comes back. In
that, ``…`` stands for some text of the line, a line of ``…`` alone for any number of lines, and the width of spaces
does not count. A ``…`` in a command is what stood in that place when the same word was printed before: a join token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class Typed:
    """Something typed, and the lines that shall come back."""

    text: str
    expected: list[str] = field(default_factory=list)


@dataclass
class Step:
    line: int
    """In the page, from 1."""
    host: str
    command: Typed
    inside: list[Typed] = field(default_factory=list)
    """What is typed into ``command`` while it runs."""

    def __str__(self) -> str:
        return f"line {self.line}: {self.host}# {self.command.text}"


def steps(page: str) -> list[Step]:
    found: list[Step] = []
    in_block = continued = False
    typed: Typed | None = None
    for number, line in enumerate(page.splitlines(), 1):
        if line.startswith("```"):
            in_block = not in_block and line.removeprefix("```").strip() == "console"
            typed = None
        elif not in_block:
            continue
        elif continued and typed is not None:
            typed.text += " " + line.strip()
        elif prompt := re.match(r"(\w+)# (.*)", line):
            typed = Typed(prompt[2])
            found.append(Step(number, prompt[1], typed))
        elif line.startswith("# ") and found:
            typed = Typed(line.removeprefix("# "))
            found[-1].inside.append(typed)
        elif typed is None:
            raise ValueError(f"line {number}: output before any command")
        else:
            typed.expected.append(line)
        continued = in_block and typed is not None and not typed.expected and line.endswith("\\")
        if continued and typed is not None:
            typed.text = typed.text.removesuffix("\\").rstrip()
    return found


def matches(expected: list[str], output: str) -> bool:
    pattern = ""
    for line in expected:
        words = " ".join(line.split())
        if words == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*?".join(re.escape(part) for part in words.split("…")) + r"\n"
    lines = [" ".join(line.split()) for line in output.replace("\r", "").splitlines()]
    return re.fullmatch(pattern, "".join(line + "\n" for line in lines)) is not None


def filled(command: str, printed: str) -> str:
    """``command`` with each word that holds ``…`` replaced by the last word of ``printed`` that fits it."""
    words = []
    for word in command.split(" "):
        if "…" in word:
            pattern = r"(?<!\S)" + r"\S+".join(re.escape(part) for part in word.split("…")) + r"(?!\S)"
            fitting = [match for match in re.findall(pattern, printed) if "…" not in match]
            if not fitting:
                raise ValueError(f"nothing was printed that fits {word}")
            word = fitting[-1]
        words.append(word)
    return " ".join(words)
