// How a chart is pointed at, dragged, pinched, and moved by keys.

const CLICK = 8; // pixels that a drag must be longer than
const STEP = 1 / 16; // of what is seen, that a key moves
const ARROWS = { // to what lies there
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1],
};

// The view after what was at one spot went to another, and what is seen grew.
function moved(axes, from, to, factor) {
  return axes.map(({ low, high, start, end }, i) => {
    const share = (pixel) => (pixel - start) / (end - start);
    const size = (high - low) * factor;
    const fixed = low + share(from[i]) * (high - low);
    const first = fixed - share(to[i]) * size;
    return [first, first + size];
  });
}

// By a drag from one spot to another; an axis along which it is short stays.
function boxed(axes, from, to) {
  const view = axes.map((axis, i) => {
    const ends = [axis.at(from[i]), axis.at(to[i])].sort((a, b) => a - b);
    return Math.abs(to[i] - from[i]) < CLICK ? [axis.low, axis.high] : ends;
  });
  return from.every((at, i) => Math.abs(to[i] - at) < CLICK) ? null : view;
}

// Makes a chart follow all this. Returns what makes it grow by a factor.
function follow(chart) {
  const { svg } = chart;
  const down = new Map(); // where each finger or button went down, and is
  const where = (event) => {
    const { left, top } = svg.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  };
  const inside = ([x, y]) => {
    const { left, right, top, bottom } = chart.area;
    return [
      Math.max(left, Math.min(right, x)), Math.max(top, Math.min(bottom, y)),
    ];
  };
  const centre = (spots) => [0, 1].map((i) =>
    spots.reduce((sum, spot) => sum + spot[i], 0) / spots.length);
  const frozen = () => chart.axes.map((axis) => ({ ...axis }));
  let axes = null; // as they were when the gesture began

  svg.addEventListener('pointerdown', (event) => {
    if (event.button) return;
    svg.setPointerCapture(event.pointerId);
    down.set(event.pointerId, { from: where(event), to: where(event) });
    for (const pointer of down.values()) pointer.from = pointer.to;
    axes = frozen();
    if (event.pointerType === 'mouse') return;
    chart.pick(chart.nearest(...where(event)));
  });

  svg.addEventListener('pointermove', (event) => {
    const to = where(event);
    const pointer = down.get(event.pointerId);
    if (!pointer || (down.size === 1 && event.pointerType !== 'mouse')) {
      chart.pick(chart.nearest(...to));
      return;
    }
    pointer.to = to;
    if (down.size > 1) {
      const spots = [...down.values()];
      const [from, now] = ['from', 'to'].map((end) => spots.map((p) => p[end]));
      const wide = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
      const factor = wide(from) / wide(now);
      chart.zoom(moved(axes, centre(from), centre(now), factor));
    } else if (event.shiftKey) {
      chart.zoom(moved(axes, pointer.from, to, 1));
    } else {
      rubber(inside(pointer.from), inside(to));
    }
  });

  function rubber([a, b], [c, d]) {
    chart.pick([]);
    chart.cursor.replaceChildren(make('rect', {
      x: Math.min(a, c), y: Math.min(b, d),
      width: Math.abs(c - a), height: Math.abs(d - b),
    }));
  }

  svg.addEventListener('pointerup', (event) => {
    const pointer = down.get(event.pointerId);
    const drag = pointer && down.size === 1 && event.pointerType === 'mouse';
    down.delete(event.pointerId);
    if (drag && !event.shiftKey) {
      const view = boxed(chart.axes, inside(pointer.from), inside(pointer.to));
      if (view) chart.zoom(view);
    }
  });
  svg.addEventListener('pointercancel', (event) => {
    down.delete(event.pointerId);
  });
  svg.addEventListener('pointerleave', (event) => {
    if (event.pointerType === 'mouse') chart.pick([]);
  });
  svg.addEventListener('blur', () => chart.pick([]));
  svg.addEventListener('dblclick', () => chart.zoom(null));
  svg.addEventListener('wheel', (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    const factor = Math.exp(Math.max(-60, Math.min(60, event.deltaY)) / 200);
    chart.zoom(moved(chart.axes, where(event), where(event), factor));
  }, { passive: false });

  svg.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.shiftKey && event.key in ARROWS) move(ARROWS[event.key]);
    else if (step) walk(step);
    else if (event.key === '+' || event.key === '=') closer(1 / 1.5);
    else if (event.key === '-') closer(1.5);
    else if (event.key === '0' || event.key === 'Escape') chart.zoom(null);
    else return;
    event.preventDefault();
  });

  // To the next point on one side; from nowhere, to the first or the last.
  function walk(step) {
    const spots = chart.spots().sort((a, b) => a.x - b.x || a.y - b.y);
    if (step < 0) spots.reverse();
    const at = spots.findIndex(({ point }) => point === chart.picked[0]?.point);
    const { joined } = chart.spec;
    const next = spots.slice(at + 1).find(({ x }) =>
      at < 0 || !joined || Math.abs(x - spots[at].x) > 0.5);
    if (next) chart.pick(joined ? chart.nearest(next.x, 0) : [next], true);
  }

  function closer(factor) {
    const { left, right, top, bottom } = chart.area;
    const at = [(left + right) / 2, (top + bottom) / 2];
    chart.zoom(moved(chart.axes, at, at, factor));
  }

  function move(ways) {
    chart.zoom(chart.axes.map(({ low, high }, i) => {
      const by = STEP * ways[i] * (high - low);
      return [low + by, high + by];
    }));
  }
  return closer;
}
