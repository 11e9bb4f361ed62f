"""The kernels that a GPU runs for `align.model.batch_norm_triton`, in Triton's language.

A map is rows of channels. A program takes some rows of one sample and a tile of channels, so it reads once what belongs
to a sample, a group or a channel; its first number along the grid is sample * parts + part. Sums over more rows are
added from the programs' parts afterwards, in a fixed order: without atomics, so results are equal from run to run. Sums
are in float32. Moments are never E[x^2] - mean^2, which cancels: each lane of a program updates its own mean and
squared deviations (Welford 1962), and parts are joined by the deviations of their means.

A tile's first row is addressed in 64 bits, rows and channels within the tile in 32. Channels come as `units` of UNIT, a
power of two, so that Triton knows the alignment of a row whose number of channels is not a multiple of 16.
"""

# ruff: noqa: PLR0913  # a kernel takes every pointer and size as an argument of its own
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
# fmt: off

import triton
import triton.language as tl

#: Numbers that Triton would otherwise compile a kernel for again when they are 1 or a multiple of 16.
_sized = triton.jit(do_not_specialize=["rows", "span", "parts", "group"])


@triton.jit
def _silu_slope(value):
    """The derivative of SiLU."""
    share = 1.0 / (1.0 + tl.exp(-value))
    return share * (1.0 + value * (1.0 - share))


@triton.jit
def _silu(value):
    return value / (1.0 + tl.exp(-value))


@triton.jit
def _vector(numbers, at, valid):
    """Numbers of a tile, or of its channels, in float32."""
    return tl.load(numbers + at, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def _factors(factor, sample, column, columns, valid, FACTOR: tl.constexpr, COLUMNS: tl.constexpr):
    """A sample's factor of each channel; FACTOR is 0: none, 1: one for the sample, 2: one for each map."""
    if FACTOR == 2:
        found = _vector(factor, sample.to(tl.int64) * columns + column, valid)
    elif FACTOR == 1:
        found = tl.zeros([COLUMNS], tl.float32) + tl.load(factor + sample).to(tl.float32)
    else:
        found = tl.full([COLUMNS], 1.0, tl.float32)
    return found


@triton.jit
def _tile(rows, units, span, parts, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program's sample, its first row and the end of its rows; lanes, channels and places of its tiles."""
    program, columns = tl.program_id(0), units * UNIT
    sample, first = (program // parts).to(tl.int64), (program % parts) * span
    last = tl.minimum(first + span, rows)
    lane, column = tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return sample, first, last, lane, column, columns, column < columns, lane[:, None] * columns + column[None, :]


@_sized
def part_moments(
    x, means, squares, rows, units, span, parts, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Mean and sum of squared deviations over the rows of a program."""
    sample, first, last, lane, column, columns, valid, within = _tile(rows, units, span, parts, UNIT, ROWS, COLUMNS)
    mean, square = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
    count = 0.0
    for start in range(first, last, ROWS):
        inside = (lane < last - start)[:, None] & valid[None, :]
        value = tl.load(x + (sample * rows + start) * columns + within, mask=inside, other=0.0).to(tl.float32)
        count += 1.0
        step = tl.where(inside, value - mean, 0.0)
        mean += step * (1.0 / count)
        square += step * (value - mean)
    counts = ((last - first + ROWS - 1 - lane) // ROWS).to(tl.float32)[:, None]  # rows of each lane
    middle = tl.sum(mean * counts, 0) / (last - first).to(tl.float32)
    apart = mean - middle[None, :]
    at = tl.program_id(0).to(tl.int64) * columns + column
    tl.store(means + at, middle, mask=valid)
    tl.store(squares + at, tl.sum(square + counts * apart * apart, 0), mask=valid)


@_sized
def group_moments(
    means, squares, mean_out, inverse_out, eps, total, rows, columns, span, parts, group, PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Joins the parts of a group of `total` rows: one pass for the mean, a second for the deviations from it."""
    number, many = tl.program_id(0).to(tl.int64), group * parts
    lane, column = tl.arange(0, PARTS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < columns
    within = lane[:, None] * columns + column[None, :]
    mean = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, many, PARTS):
        inside = (lane < many - start)[:, None] & valid[None, :]
        counts = tl.minimum(rows - (start + lane) % parts * span, span).to(tl.float32)[:, None]
        part = tl.load(means + (number * many + start) * columns + within, mask=inside, other=0.0)
        mean += tl.sum(part * counts, 0)
    mean /= total
    square = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, many, PARTS):
        inside = (lane < many - start)[:, None] & valid[None, :]
        counts = tl.minimum(rows - (start + lane) % parts * span, span).to(tl.float32)[:, None]
        where = (number * many + start) * columns + within
        apart = tl.load(means + where, mask=inside, other=0.0) - mean[None, :]
        own = tl.load(squares + where, mask=inside, other=0.0)
        square += tl.sum(tl.where(inside, own + counts * apart * apart, 0.0), 0)
    at = number * columns + column
    tl.store(mean_out + at, mean, mask=valid)
    tl.store(inverse_out + at, 1.0 / tl.sqrt(square / total + eps), mask=valid)


@_sized
def values(
    x, mean, inverse, weight, bias, factor, residual, out, rows, units, span, parts, group, SILU: tl.constexpr,
    FACTOR: tl.constexpr, RESIDUAL: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """residual + factor * act(weight * normal + bias)."""
    sample, first, last, lane, column, columns, valid, within = _tile(rows, units, span, parts, UNIT, ROWS, COLUMNS)
    of_group = sample // group * columns + column
    middle, scale = _vector(mean, of_group, valid), _vector(inverse, of_group, valid) * _vector(weight, column, valid)
    shift = _vector(bias, column, valid)
    factors = _factors(factor, sample, column, columns, valid, FACTOR, COLUMNS)
    for start in range(first, last, ROWS):
        inside = (lane < last - start)[:, None] & valid[None, :]
        where = (sample * rows + start) * columns + within
        value = (_vector(x, where, inside) - middle[None, :]) * scale[None, :] + shift[None, :]
        if SILU:
            value = _silu(value)
        value *= factors[None, :]
        if RESIDUAL:
            value += _vector(residual, where, inside)
        tl.store(out + where, value.to(out.dtype.element_ty), mask=inside)


@_sized
def part_sums(
    grad, x, mean, inverse, weight, bias, out, share, rows, units, span, parts, group, GRAD: tl.constexpr,
    UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """The sum of SiLU over the rows of a program, each times its gradient if there is one; all times `share`."""
    sample, first, last, lane, column, columns, valid, within = _tile(rows, units, span, parts, UNIT, ROWS, COLUMNS)
    of_group = sample // group * columns + column
    middle, scale = _vector(mean, of_group, valid), _vector(inverse, of_group, valid) * _vector(weight, column, valid)
    shift = _vector(bias, column, valid)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        inside = (lane < last - start)[:, None] & valid[None, :]
        where = (sample * rows + start) * columns + within
        value = _silu((_vector(x, where, inside) - middle[None, :]) * scale[None, :] + shift[None, :])
        if GRAD:
            value *= _vector(grad, where, inside)
        total += tl.where(inside, value, 0.0)
    tl.store(out + tl.program_id(0).to(tl.int64) * columns + column, tl.sum(total, 0) * share, mask=valid)


@_sized
def gradient_sums(
    grad, x, mean, inverse, weight, bias, factor, shift, plain_out, normal_out, rows, units, span, parts, group,
    SILU: tl.constexpr, FACTOR: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sums, over the rows of a program, of the gradient of weight * normal + bias, and of it times normal."""
    sample, first, last, lane, column, columns, valid, within = _tile(rows, units, span, parts, UNIT, ROWS, COLUMNS)
    of_group = sample // group * columns + column
    middle, inverted = _vector(mean, of_group, valid), _vector(inverse, of_group, valid)
    scale, offset = _vector(weight, column, valid), _vector(bias, column, valid)
    factors = _factors(factor, sample, column, columns, valid, FACTOR, COLUMNS)
    shifts = _factors(shift, sample, column, columns, valid, SHIFT, COLUMNS)
    plain, weighted = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, ROWS):
        inside = (lane < last - start)[:, None] & valid[None, :]
        where = (sample * rows + start) * columns + within
        normal = (_vector(x, where, inside) - middle[None, :]) * inverted[None, :]
        value = _vector(grad, where, inside) * factors[None, :]
        if SHIFT:
            value += shifts[None, :]
        if SILU:
            value *= _silu_slope(normal * scale[None, :] + offset[None, :])
        value = tl.where(inside, value, 0.0)
        plain += value
        weighted += value * normal
    at = tl.program_id(0).to(tl.int64) * columns + column
    tl.store(plain_out + at, tl.sum(plain, 0), mask=valid)
    tl.store(normal_out + at, tl.sum(weighted, 0), mask=valid)


@_sized
def gradient_values(
    grad, x, mean, inverse, weight, bias, factor, shift, plain_sums, normal_sums, out, share, rows, units, span, parts,
    group, SILU: tl.constexpr, FACTOR: tl.constexpr, SHIFT: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of x from the sums over its group; `share` is 1 / the group's rows."""
    sample, first, last, lane, column, columns, valid, within = _tile(rows, units, span, parts, UNIT, ROWS, COLUMNS)
    of_group = sample // group * columns + column
    middle, inverted = _vector(mean, of_group, valid), _vector(inverse, of_group, valid)
    scale, offset = _vector(weight, column, valid), _vector(bias, column, valid)
    factors = _factors(factor, sample, column, columns, valid, FACTOR, COLUMNS)
    shifts = _factors(shift, sample, column, columns, valid, SHIFT, COLUMNS)
    plain = _vector(plain_sums, of_group, valid) * share
    weighted = _vector(normal_sums, of_group, valid) * share
    slope = inverted * scale
    for start in range(first, last, ROWS):
        inside = (lane < last - start)[:, None] & valid[None, :]
        where = (sample * rows + start) * columns + within
        normal = (_vector(x, where, inside) - middle[None, :]) * inverted[None, :]
        value = _vector(grad, where, inside) * factors[None, :]
        if SHIFT:
            value += shifts[None, :]
        if SILU:
            value *= _silu_slope(normal * scale[None, :] + offset[None, :])
        value = (value - plain[None, :] - normal * weighted[None, :]) * slope[None, :]
        tl.store(out + where, value.to(out.dtype.element_ty), mask=inside)
