"""Trigonometric and hyperbolic functions, Erf.

Source: textbook identities, in the forms that lose no digits where two large terms would cancel; each is named above its code.
"""

from __future__ import annotations

import numpy as np

from compiler.decompose.builder import Builder
from compiler.decompose.table import Undecomposable, decomposes


@decomposes("Tan")
def tan(b: Builder) -> None:
    """sin / cos"""
    b.output(b.op("Div", b.op("Sin", b.x.name), b.op("Cos", b.x.name)))


@decomposes("Sinh")
def sinh(b: Builder) -> None:
    """(e^x - e^-x) / 2, and x + x^3/6 + x^5/120 below 1/2, where the difference cancels."""
    x = b.x.name
    far = b.op("Mul", b.op("Sub", b.op("Exp", x), b.op("Exp", b.op("Neg", x))), b.like(0.5))
    square = b.op("Mul", x, x)
    near = b.op("Mul", x, _horner(b, square, [1 / 5040, 1 / 120, 1 / 6, 1.0]))
    b.output(b.op("Where", b.op("Less", b.op("Abs", x), b.like(0.5)), near, far))


@decomposes("Cosh")
def cosh(b: Builder) -> None:
    """(e^x + e^-x) / 2"""
    total = b.op("Add", b.op("Exp", b.x.name), b.op("Exp", b.op("Neg", b.x.name)))
    b.output(b.op("Mul", total, b.like(0.5)))


@decomposes("Asinh")
def asinh(b: Builder) -> None:
    """sign(x) log(|x| + sqrt(x^2 + 1))"""
    size = b.op("Abs", b.x.name)
    root = b.op("Sqrt", b.op("Add", b.op("Mul", size, size), b.like(1.0)))
    b.output(b.op("Mul", b.op("Sign", b.x.name), b.op("Log", b.op("Add", size, root))))


@decomposes("Acosh")
def acosh(b: Builder) -> None:
    """log(x + sqrt((x - 1)(x + 1)))"""
    x = b.x.name
    product = b.op("Mul", b.op("Sub", x, b.like(1.0)), b.op("Add", x, b.like(1.0)))
    b.output(b.op("Log", b.op("Add", x, b.op("Sqrt", product))))


@decomposes("Atanh")
def atanh(b: Builder) -> None:
    """log((1 + x) / (1 - x)) / 2"""
    x = b.x.name
    ratio = b.op("Div", b.op("Add", x, b.like(1.0)), b.op("Sub", b.like(1.0), x))
    b.output(b.op("Mul", b.op("Log", ratio), b.like(0.5)))


@decomposes("Atan")
def atan(b: Builder) -> None:
    b.output(_atan(b, b.x.name))


@decomposes("Asin")
def asin(b: Builder) -> None:
    """2 atan(x / (1 + sqrt((1 - x)(1 + x))))"""
    b.output(_asin(b, b.x.name))


@decomposes("Acos")
def acos(b: Builder) -> None:
    """pi/2 - asin(x)"""
    b.output(b.op("Sub", b.like(np.pi / 2), _asin(b, b.x.name)))


def _asin(b: Builder, x: str) -> str:
    one = b.like(1.0)
    root = b.op("Sqrt", b.op("Mul", b.op("Sub", one, x), b.op("Add", one, x)))
    return b.op("Mul", _atan(b, b.op("Div", x, b.op("Add", one, root))), b.like(2.0))


def _atan(b: Builder, x: str) -> str:
    """atan(x) = pi/2 - atan(1/x) above 1; below, atan(t) = atan(1/2) + atan((t - 1/2) / (1 + t/2)), whose argument is at most 1/2.

    There the Taylor series to t^15 is exact to 2^-25 relative to its value.
    """
    one = b.like(1.0)
    size = b.op("Abs", x)
    large = b.op("Greater", size, one)
    small = b.op("Where", large, b.op("Div", one, b.op("Max", size, one)), size)
    upper = b.op("Greater", small, b.like(0.5))
    moved = b.op("Div", b.op("Sub", small, b.like(0.5)), b.op("Add", one, b.op("Mul", small, b.like(0.5))))
    t = b.op("Where", upper, moved, small)
    terms = [(-1) ** k / (2 * k + 1) for k in range(10, -1, -1)]
    series = b.op("Mul", t, _horner(b, b.op("Mul", t, t), terms))
    inner = b.op("Where", upper, b.op("Add", series, b.like(np.arctan(0.5))), series)
    angle = b.op("Where", large, b.op("Sub", b.like(np.pi / 2), inner), inner)
    return b.op("Mul", b.op("Sign", x), angle)


def _horner(b: Builder, x: str, coefficients: list[float]) -> str:
    """Polynomial in ``x``, the highest coefficient first."""
    result = b.like(coefficients[0])
    for coefficient in coefficients[1:]:
        result = b.op("Add", b.op("Mul", result, x), b.like(coefficient))
    return result


@decomposes("Erf")
def erf(b: Builder) -> None:
    """erf(x) = x P(x^2) below 1, 1 - Q(t) e^(-x^2) above, t = 1 / (1 + x/2).

    Source: below 1 the Maclaurin series (Abramowitz and Stegun 7.1.5); above 1 Numerical Recipes' Chebyshev fit of erfc
    (2nd edition, section 6.2), fractional error below 1.2e-7 everywhere.
    """
    if b.x.dtype != np.float32:
        raise Undecomposable(f"its input is {b.x.dtype}")
    x = b.x.name
    size = b.op("Abs", x)
    square = b.op("Mul", x, x)
    terms: list[float] = []
    factorial = 1.0
    for n in range(12):
        factorial *= n or 1
        terms.append(2 / np.sqrt(np.pi) * (-1) ** n / (factorial * (2 * n + 1)))
    near = b.op("Mul", x, _horner(b, b.op("Min", square, b.like(1.0)), terms[::-1]))
    t = b.op("Div", b.like(1.0), b.op("Add", b.like(1.0), b.op("Mul", size, b.like(0.5))))
    chebyshev = [
        0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368,
        -1.26551223,
    ]  # fmt: skip
    exponent = b.op("Sub", _horner(b, t, chebyshev), b.op("Mul", size, size))
    tail = b.op("Sub", b.like(1.0), b.op("Mul", t, b.op("Exp", exponent)))
    far = b.op("Mul", b.op("Sign", x), tail)
    b.output(b.op("Where", b.op("Less", size, b.like(1.0)), near, far))
