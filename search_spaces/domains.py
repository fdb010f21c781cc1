"""Domains: the sets of values that a searched field may take, and how YAML writes them.

==========================================  =======================================
YAML                                        domain
==========================================  =======================================
``[0, 4, 8]`` or ``{choice: [0, 4, 8]}``    one of the listed values
``{uniform: [0, 0.5]}``                     a float, evenly
``{log_uniform: [1e-4, 3e-2]}``             a float, evenly in its logarithm
``{int: [1, 12]}``, ``{int: [2, 12, 2]}``   an integer from low to high in steps
``search``                                  the domain that stands beside the field's default
==========================================  =======================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Scalar = None | bool | int | float | str


class Suggests(Protocol):
    """What a domain needs of an Optuna trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar: ...


@dataclass(frozen=True)
class Uniform:
    """Floats in [low, high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)

    def suggest(self, trial: Suggests, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high)

    def probes(self) -> tuple[Scalar, ...]:
        """Return the values that decide whether every value of the domain is allowed."""
        return (self.low, self.high)

    def contains(self, value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def locate(self, value: object) -> float:
        """Return the domain's own spelling of a value; ValueError if it is not in the domain."""
        number = float(_number(value))
        if not self.contains(number):
            raise _outside(self, value)
        return number

    def plain(self) -> Any:
        """Return what YAML would say; `parse_domain` takes it back."""
        return {"uniform": [self.low, self.high]}

    def __str__(self) -> str:
        return f"uniform {self.low:g} … {self.high:g}"


@dataclass(frozen=True)
class LogUniform(Uniform):
    """Floats in [low, high], low > 0, drawn evenly in their logarithm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise ValueError(f"a log_uniform domain starts above 0, found {self.low:g}")

    def suggest(self, trial: Suggests, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high, log=True)

    def plain(self) -> Any:
        return {"log_uniform": [self.low, self.high]}

    def __str__(self) -> str:
        return f"log-uniform {self.low:g} … {self.high:g}"


@dataclass(frozen=True)
class IntRange:
    """Integers low, low + step, … up to high, which is lowered to the last step that fits."""

    low: int
    high: int
    step: int = 1

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)
        if not 1 <= self.step <= self.high - self.low:
            reach = self.high - self.low
            raise ValueError(
                f"the step of an int domain is at least 1 and at most high - low = {reach}, found {self.step}"
            )
        object.__setattr__(self, "high", self.high - (self.high - self.low) % self.step)

    def suggest(self, trial: Suggests, name: str) -> int:
        return trial.suggest_int(name, self.low, self.high, step=self.step)

    def probes(self) -> tuple[Scalar, ...]:
        return tuple(thin(range(self.low, self.high + 1, self.step), 1000))

    def contains(self, value: object) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and value in range(self.low, self.high + 1, self.step)

    def locate(self, value: object) -> int:
        number = _number(value)
        if number != int(number) or not self.contains(int(number)):
            raise _outside(self, value)
        return int(number)

    def plain(self) -> Any:
        return {"int": [self.low, self.high] + ([self.step] if self.step > 1 else [])}

    def __str__(self) -> str:
        return f"integer {self.low} … {self.high}" + (f" step {self.step}" if self.step > 1 else "")


@dataclass(frozen=True)
class Choice:
    """One of a few values, without order."""

    options: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError("a choice needs at least one value")
        if len(set(self.options)) != len(self.options):  # Optuna takes 1, 1.0 and true for the same value, and so do we
            raise ValueError(f"a choice lists each value once, found {list(self.options)}")

    def suggest(self, trial: Suggests, name: str) -> Scalar:
        return trial.suggest_categorical(name, self.options)

    def probes(self) -> tuple[Scalar, ...]:
        return self.options

    def contains(self, value: object) -> bool:
        return any(type(o) is type(value) and o == value for o in self.options)

    def locate(self, value: object) -> Scalar:
        for option in self.options:
            if isinstance(option, bool) == isinstance(value, bool) and option == value:
                return option
        for option in self.options:
            if isinstance(option, str) != isinstance(value, str) and _same_number(option, value):
                return option
        raise _outside(self, value)

    def plain(self) -> Any:
        return {"choice": list(self.options)}

    def __str__(self) -> str:
        return "one of " + ", ".join("null" if o is None else str(o) for o in self.options)


Domain = Uniform | IntRange | Choice

KINDS = ("choice", "uniform", "log_uniform", "int")


def parse_domain(value: object) -> Domain | None:
    """Read a domain as YAML writes it (see the module's table).

    Args:    value: what stands at a field: a scalar, a list, or a mapping with one of KINDS as its only key.
    Returns: the domain, or None if the value is a plain value and no domain.
    Raises:  ValueError if it looks like a domain and is none, with the reason.
    """
    if isinstance(value, list | tuple):
        return Choice(tuple(_scalar(v) for v in value))
    if not isinstance(value, Mapping):
        return None
    if len(value) != 1 or next(iter(value)) not in KINDS:
        raise ValueError(
            f"a domain is a list or a mapping with one of the keys {', '.join(KINDS)}; found {dict(value)}"
        )
    ((kind, bounds),) = value.items()
    if not isinstance(bounds, list | tuple):
        raise ValueError(f"{kind} takes a list, found {bounds!r}")
    if kind == "choice":
        return Choice(tuple(_scalar(v) for v in bounds))
    numbers = [_number(v) for v in bounds]
    if kind == "int":
        if len(numbers) not in (2, 3) or any(n != int(n) for n in numbers):
            raise ValueError(f"int takes [low, high] or [low, high, step] in whole numbers, found {list(bounds)}")
        return IntRange(*(int(n) for n in numbers))
    if len(numbers) != 2:
        raise ValueError(f"{kind} takes [low, high], found {list(bounds)}")
    return (LogUniform if kind == "log_uniform" else Uniform)(*numbers)


def parse_number(text: str) -> float:
    """Read a number that may be a fraction: ``"2/255"`` → 0.00784…, ``"1e-3"`` → 0.001; ValueError if it is neither."""
    numerator, slash, denominator = text.partition("/")
    if slash and float(denominator) == 0:
        raise ValueError(f"division by zero in {text!r}")
    number = float(numerator) / float(denominator) if slash else float(numerator)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, found {text!r}")
    return number


def thin(values: Sequence[Any], count: int) -> Sequence[Any]:
    """Return at most `count` >= 2 of the values, evenly spaced, first and last among them."""
    if len(values) <= count:
        return values
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def _number(value: object) -> float:
    if isinstance(value, str):  # YAML 1.1 and 1.2 disagree on 1e-3; both spellings and 2/255 are numbers here
        try:
            return parse_number(value)
        except ValueError:
            raise ValueError(f"expected a number, found {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a number, found {value!r}")
    return value


def _same_number(one: object, other: object) -> bool:
    """Whether a text and a number spell the same number: "2/255" and 0.00784…"""
    try:
        return math.isclose(_number(one), _number(other), rel_tol=1e-12)
    except ValueError:
        return False


def _outside(domain: Domain, value: object) -> ValueError:
    return ValueError(f"{value!r} is outside what is searched: {domain}")


def _scalar(value: object) -> Scalar:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"a choice lists plain values, found {value!r}")


def _check_bounds(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"a domain needs low < high, found [{low:g}, {high:g}]")
