// What is drawn inside the axes of a chart: lines, points, the front, names.

const SHAPES = {
  o: (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  s: (r) => `M${-r} ${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
  '^': (r) => `M0 ${-1.2 * r}L${1.2 * r} ${r}H${-1.2 * r}z`,
  v: (r) => `M0 ${1.2 * r}L${1.2 * r} ${-r}H${-1.2 * r}z`,
  D: (r) => `M0 ${-1.3 * r}L${1.3 * r} 0L0 ${1.3 * r}L${-1.3 * r} 0z`,
  '<': (r) => `M${-1.2 * r} 0L${r} ${-1.2 * r}V${1.2 * r}z`,
  '>': (r) => `M${1.2 * r} 0L${-r} ${-1.2 * r}V${1.2 * r}z`,
  p: (r) =>
    `M0 ${-1.2 * r}L${1.2 * r} ${-0.3 * r}L${0.7 * r} ${r}` +
    `H${-0.7 * r}L${-1.2 * r} ${-0.3 * r}z`,
};
const DRAWINGS = new Set('svg g path line rect text clipPath defs'.split(' '));

// An element. Texts become text and nothing else, whatever stands in them.
function make(name, attributes = {}, ...children) {
  const made = DRAWINGS.has(name)
    ? document.createElementNS('http://www.w3.org/2000/svg', name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function mark(shape, size, attributes) {
  return make('path', { d: SHAPES[shape](size), ...attributes });
}

// The marker of a scheme, to stand before its name.
function swatch({ hue, mark: shape }) {
  const attributes = { viewBox: '-8 -8 16 16', 'aria-hidden': 'true' };
  return make(
    'svg', { class: `swatch s${hue}`, ...attributes },
    mark(shape, 5, { class: 'mark' }),
  );
}

// A line through points, its band and its markers.
function line(series, spot) {
  const { hue, thin, points } = series;
  const path = points.map((p, i) => (i && !p.gap ? 'L' : 'M') + spot(p.x, p.y));
  const drawn = make(
    'g', { class: `series s${hue}${thin ? ' thin' : ''}` },
    make('path', { class: 'band', d: band(points, spot) }),
    make('path', { class: 'line', d: path.join('') }),
  );
  const every = Math.ceil(points.length / 25);
  points.forEach((point, i) => {
    if (thin || (i % every && i < points.length - 1)) return;
    const at = `translate(${spot(point.x, point.y)})`;
    drawn.append(mark(series.mark, 3.5, { class: 'mark', transform: at }));
  });
  return drawn;
}

// From low to high, a piece for each part of a line that has no gap.
function band(points, spot) {
  const pieces = [[]];
  for (const point of points) {
    if (point.gap) pieces.push([]);
    if (point.high > point.low) pieces.at(-1).push(point);
  }
  const drawn = pieces.filter((piece) => piece.length > 1).map((piece) => {
    const up = piece.map((p) => spot(p.x, p.high));
    const down = piece.map((p) => spot(p.x, p.low)).reverse();
    return `M${[...up, ...down].join('L')}z`;
  });
  return drawn.join('');
}

// Points with bars that reach from low to high, and from left to right.
function cloud(series, spot) {
  const drawn = make('g', { class: `series s${series.hue}` });
  for (const { x, y, low, high, left, right } of series.points) {
    const up = high > low ? `M${spot(x, low)}L${spot(x, high)}` : '';
    const across = right > left ? `M${spot(left, y)}L${spot(right, y)}` : '';
    drawn.append(
      make('path', { class: 'bar', d: up + across }),
      mark(series.mark, 6, {
        class: 'mark', transform: `translate(${spot(x, y)})`,
      }),
    );
  }
  return drawn;
}

// Of points, those that no other one beats in one value and equals in the rest,
// from left to right: less is better.
function front(points) {
  const sorted = [...points].sort((a, b) => a.x - b.x || a.y - b.y);
  let least = Infinity;
  return sorted.filter(({ y }) => {
    const better = y < least;
    least = Math.min(least, y);
    return better;
  });
}

// The stairs through a front, and all that lies behind them. They go on beyond
// the area, which cuts them.
function stairs(points, chart) {
  if (!points.length) return [];
  const { left, right, top, bottom } = chart.area;
  const held = (at, low, high) => Math.min(high + 99, Math.max(low - 99, at));
  const spots = points.map((p) => [
    held(chart.x.pixel(p.x), left, right),
    held(chart.y.pixel(p.y), top, bottom),
  ]);
  const [[first]] = spots;
  const steps = spots.map(([x, y], i) => (i ? `H${x}V${y}` : `V${y}`));
  const path = `M${first} ${top - 99}${steps.join('')}H${right + 99}`;
  return [
    make('path', { class: 'behind', d: `${path}V${top - 99}z` }),
    make('path', { class: 'front', d: path }),
  ];
}

// The names of points, each where it has room, or nowhere.
function names(series, chart) {
  const { left, right, top, bottom } = chart.area;
  const spots = series.map(({ name, points: [p] }) => ({
    text: name.length > 26 ? `${name.slice(0, 25)}…` : name,
    x: chart.x.pixel(p.x),
    y: chart.y.pixel(p.y),
  }));
  const taken = spots.map(({ x, y }) => [x - 7, y - 7, x + 7, y + 7]);
  const drawn = make('g', { class: 'names' });
  for (const { text, x, y } of spots) {
    const wide = 6.8 * text.length;
    const [before, after, middle] = [x - 11 - wide, x + 11, x - wide / 2];
    const free = [
      [after, y - 18], [after, y + 4], [before, y - 18], [before, y + 4],
      [middle, y - 24], [middle, y + 9], [after, y - 7], [before, y - 7],
    ].map(([a, b]) => [a, b, a + wide, b + 14]).find(([a, b, c, d]) =>
      a > left && c < right && b > top && d < bottom &&
      taken.every((t) => c < t[0] || a > t[2] || d < t[1] || b > t[3]));
    if (!free) continue;
    taken.push(free);
    drawn.append(make('text', { x: free[0], y: free[1] + 11 }, text));
  }
  return drawn;
}
