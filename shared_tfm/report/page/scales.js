'use strict';

// Where numbers lie on an axis, and how people read them.

const COUNTS = ['', 'k', 'M', 'B', 'T']; // as the summary counts parameters
const DECIMAL = ['', 'k', 'M', 'G', 'T', 'P', 'E', 'Z'];
const BINARY = ['', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi'];
const TIMES = [[1, 's'], [60, 'min'], [3600, 'h']];
const SECONDS = [0.1, 1, 10, 60, 600, 3600, 36e3, 36e4, 36e5].flatMap(
  (value, i) => (i < 3 ? [value, 2 * value, 5 * value] : [value, 3 * value]),
);

// What numbers like this one are counted in: how many units, and its name.
function counted(value, unit) {
  const size = Math.abs(value);
  if (unit === 's') {
    return TIMES.findLast(([seconds]) => size >= 2 * seconds) || TIMES[0];
  }
  const [base, names] = unit === 'B'
    ? [1024, BINARY] : [1000, unit ? DECIMAL : COUNTS];
  if (!unit && size && (size < 1e-3 || size >= 1e15)) { // powers of ten
    const power = Math.floor(Math.log10(size));
    return [10 ** power, `e${power}`];
  }
  let i = 0;
  while (size >= 0.9995 * base ** (i + 1) && i < names.length - 1) i += 1;
  return [base ** i, names[i] + unit];
}

// Three digits, a prefix and a unit: 12345 is 12.3k.
function human(value, unit = '') {
  if (value === null || !Number.isFinite(value)) return '–';
  const [size, name] = counted(value, unit);
  const text = String(Number((value / size).toPrecision(3)));
  return unit ? `${text} ${name}` : text + name;
}

// About `count` round numbers from low to high, each with its text.
function ticks(low, high, count, unit = '') {
  const [size, name] = counted(Math.max(Math.abs(low), Math.abs(high)), unit);
  const rough = (high - low) / size / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  const last = Math.floor(high / size / step + 1e-9);
  for (let i = Math.ceil(low / size / step - 1e-9); i <= last; i += 1) {
    const text = (i * step).toFixed(Math.min(digits, 12));
    const full = unit ? `${text} ${name}` : text + name;
    found.push([i * step * size, i === 0 ? '0' : full]);
  }
  return found;
}

// Numbers for a logarithmic axis, all between the two and perhaps more.
function rounds(unit, least, most) {
  const known = SECONDS.filter((value) => value >= least && value <= most);
  if (unit === 's' && known.length > 1) return known;
  const fine = most / least < 20 ? [1, 1.5, 2, 3, 5, 7] : [1, 2, 5];
  const [base, parts] = unit === 'B' ? [2, [1]] : [10, fine];
  const power = (value) => Math.floor(Math.log(value) / Math.log(base));
  const found = [];
  for (let p = power(least); p <= power(most) + 1; p += 1) {
    found.push(...parts.map((part) => part * base ** p));
  }
  return found;
}

// One axis: values to pixels and back. What is seen is [low, high], which are
// logarithms where the axis is logarithmic.
class Axis {
  constructor(log = false, unit = '') {
    this.log = log;
    this.unit = unit;
  }

  // From here on, [low, high] lies on the pixels [start, end].
  set([low, high], start, end) {
    Object.assign(this, { low, high, start, end });
  }

  inner(value) {
    return this.log ? Math.log10(value) : value;
  }

  pixel(value) {
    const share = (this.inner(value) - this.low) / (this.high - this.low);
    return this.start + share * (this.end - this.start);
  }

  // What lies at a pixel, a logarithm where the axis is logarithmic.
  at(pixel) {
    const share = (pixel - this.start) / (this.end - this.start);
    return this.low + share * (this.high - this.low);
  }

  // Round numbers that are seen, each with its text.
  marks(count) {
    const { low, high, unit } = this;
    if (!this.log) return ticks(low, high, count, unit);
    const [least, most] = [10 ** low, 10 ** high];
    if (high - low < 0.7) return ticks(least, most, count, unit);
    const found = rounds(unit, least, most)
      .filter((value) => value >= least && value <= most);
    const every = Math.ceil(found.length / (count + 1));
    return found.filter((_, i) => i % every === 0)
      .map((value) => [value, human(value, unit)]);
  }
}
