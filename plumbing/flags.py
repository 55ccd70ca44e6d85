"""Command lines: a parser that answers in one line, and the types of its numbers."""

from __future__ import annotations

import argparse
import math
import re
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, without the page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help explains the flags)\n")


def parse_size(text: str) -> tuple[int, int]:
    """"480x640" -> (480, 640), height first."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if not match or min(int(match[1]), int(match[2])) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 480x640")
    return int(match[1]), int(match[2])


def number(text: str, low: float, high: float, what: str) -> float:
    """argparse type, once the bounds are given: a number in low..high; NaN never is."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def positive(text: str) -> float:
    """argparse type: a finite number above 0."""
    return number(text, 1e-12, 1e12, "a positive number")


def nonnegative(text: str) -> float:
    """argparse type: a finite number, 0 or more."""
    return number(text, 0.0, 1e12, "a number of 0 or more")


def probability(text: str) -> float:
    """argparse type: a number in 0..1."""
    return number(text, 0.0, 1.0, "a probability between 0 and 1")


def from_0_to_1(text: str) -> float:
    """argparse type: the same for what is no probability."""
    return number(text, 0.0, 1.0, "a number from 0 to 1")


def above_0_to_1(text: str) -> float:
    """argparse type: a number in 0..1, but not 0."""
    return number(text, 1e-12, 1.0, "a number above 0, at most 1")


def below_1(text: str) -> float:
    """argparse type: a number in 0..1, but not 1."""
    return number(text, 0.0, math.nextafter(1.0, 0.0), "a number of 0 or more, below 1")


def any_number(text: str) -> float:
    """argparse type: any number, infinite ones too, but not NaN."""
    return number(text, -math.inf, math.inf, "a number, inf or -inf")


def whole(text: str) -> int:
    """argparse type: a whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)
