"""Command lines: a frozen dataclass is a group of flags, a field is one flag and its line of help.

    @dataclass(frozen=True)
    class Schedule:
        \"\"\"optimisation (Sec. 4.2)\"\"\"
        lr: float = flag("4e-3", "peak learning rate", positive)

    add(parser, Schedule)           --lr, under that title
    take(args, Schedule)            what was given, as one object to hand down
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

Group = TypeVar("Group")


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, without the page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help explains the flags)\n")


def flag(default: Any, help: str, type: Callable | None = None, **options: Any) -> Any:
    """A field of a group. default: a string is parsed by `type` as the command line is; False makes
    a switch. help: "(default ...)" is added where it does not say so itself and there is one.
    options: argparse's own (choices, metavar, nargs, ...)."""
    shown = default
    if isinstance(default, str) and type is not None:
        default = type(default)
    if default is False:
        options["action"] = "store_true"
    elif type is not None:
        options["type"] = type
    return dataclasses.field(default=default, metadata={"help": help, "shown": shown, **options})


def add(parser: argparse.ArgumentParser, group: type, **defaults: Any) -> argparse._ArgumentGroup:
    """Adds a flag for every field of a dataclass, under its docstring's first line; `defaults` in
    place of some of its own. Returns the argument group, for flags of the script's own."""
    section = parser.add_argument_group((group.__doc__ or group.__name__).splitlines()[0])
    for field in dataclasses.fields(group):
        options = dict(field.metadata)
        shown, default = options.pop("shown"), field.default
        if field.name in defaults:
            shown = default = defaults[field.name]
        if "(default" not in options["help"] and shown is not None and shown is not False:
            options["help"] += f" (default {shown})"
        section.add_argument(f"--{field.name}", default=default, **options)
    return section


def take(args: argparse.Namespace, group: type[Group]) -> Group:
    """The dataclass of the values that were given."""
    return group(**{field.name: getattr(args, field.name) for field in dataclasses.fields(group)})


# ------------------------------------------------------------------------------- argparse types


def between(low: float, high: float, what: str, kind: type = float) -> Callable[[str], Any]:
    """An argparse type: a number in low..high; NaN never is. `what` is for the message."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


positive = between(1e-12, 1e12, "a positive number")
nonnegative = between(0.0, 1e12, "a number of 0 or more")
probability = between(0.0, 1.0, "a probability between 0 and 1")
from_0_to_1 = between(0.0, 1.0, "a number from 0 to 1")
above_0_to_1 = between(1e-12, 1.0, "a number above 0, at most 1")
below_1 = between(0.0, math.nextafter(1.0, 0.0), "a number of 0 or more, below 1")
any_number = between(-math.inf, math.inf, "a number, inf or -inf")
whole = between(0, 1 << 62, "a whole number of 0 or more", int)
count = between(1, 1 << 62, "a whole number of 1 or more", int)


def several(number: int, each: Callable[[str], Any], what: str) -> Callable[[str], tuple]:
    """An argparse type: "0.9,1.1" -> (0.9, 1.1), so many values of the type `each`."""

    def parse(text: str) -> tuple:
        parts = text.split(",")
        if len(parts) != number:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return tuple(each(part) for part in parts)

    return parse


def parse_size(text: str) -> tuple[int, int]:
    """"480x640" -> (480, 640), height first."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if not match or min(int(match[1]), int(match[2])) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 480x640")
    return int(match[1]), int(match[2])


def ordered(text: str) -> tuple[float, float]:
    """"0.5,10" -> (0.5, 10.0): two positive numbers, the lower one first (they may be equal)."""
    low, high = several(2, positive, "LOW,HIGH")(text)
    if low > high:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW,HIGH with LOW <= HIGH")
    return low, high


def parse_intrinsics(text: str) -> tuple[float, ...]:
    """"fx,fy,cx,cy" -> four floats in pixels; the principal point may lie outside the picture."""
    fx, fy, cx, cy = several(4, between(-1e9, 1e9, "a number"), "FX,FY,CX,CY")(text)
    if min(fx, fy) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not fx,fy,cx,cy with positive fx and fy")
    return fx, fy, cx, cy
