// A chart that one can read, zoom and print.

const NEAR = 32; // pixels from what is pointed at
const SMALL = 500; // a chart as narrow as this is not covered by what it tells
let charts = 0;

class Chart {
  constructor(box, label) {
    this.box = box;
    this.clip = `clip-${(charts += 1)}`;
    this.svg = make('svg', { // an application gets its keys from screen readers
      role: 'application', tabindex: 0, 'aria-label': label,
    });
    this.tip = make('div', { class: 'tip', hidden: '' });
    this.told = make('p', { class: 'unseen', 'aria-live': 'polite' });
    this.picked = [];
    box.append(this.svg, this.tip, this.told);
    new ResizeObserver(() => requestAnimationFrame(() => {
      if (box.clientWidth !== this.width) this.draw();
    })).observe(box);
  }

  // Draws this, in place of what there was:
  //   series: a list of {name, hue, mark, thin, points}. Points have x and y,
  //     and may have low and high, left and right; `gap`: no line leads here.
  //   joined: lines, whose points are read at one x; else points alone.
  //   x: its axis. home: what is seen before anybody zooms, as Axis.set has it,
  //     of x and of y. titles: of x and of y.
  //   front: the points of the front, or none.
  //   read: of what is picked, the title and the rows of what is told.
  show(spec, keep = false) {
    this.spec = spec;
    if (!keep) this.view = null;
    this.draw();
  }

  // Shows a part of it, [[low, high], [low, high]], or home where that is null.
  zoom(view) {
    const sane = !view || view.every(([low, high], i) => {
      const [first, last] = this.spec.home[i];
      const share = (high - low) / (last - first);
      return share > 1e-4 && share < 20;
    });
    if (!sane) return;
    this.view = view;
    this.draw();
  }

  get axes() {
    return [this.x, this.y];
  }

  draw() {
    const width = this.box.clientWidth;
    if (!this.spec || !width) return;
    const { series, joined, titles } = this.spec;
    const height = Math.round(Math.min(430, Math.max(280, width * 0.5)));
    const [right, top, bottom] = [width - 12, 14, height - 46];
    const [across, up] = this.view || this.spec.home;
    this.y = new Axis();
    this.y.set(up, bottom, top);
    const levels = this.y.marks((bottom - top) / 45);
    const longest = Math.max(0, ...levels.map(([, text]) => text.length));
    const left = Math.max(58, 32 + 7.6 * longest); // a title stands before them
    Object.assign(this, { width, height, area: { left, right, top, bottom } });
    this.x = this.spec.x;
    this.x.set(across, left, right);
    const spot = (x, y) =>
      `${this.x.pixel(x).toFixed(1)} ${this.y.pixel(y).toFixed(1)}`;

    const inside = make('rect', {
      x: left, y: top - 6, width: right - left + 6, height: bottom - top + 6,
    });
    const middle = { 'text-anchor': 'middle', class: 'title' };
    const turned = `translate(13 ${(top + bottom) / 2}) rotate(-90)`;
    this.cursor = make('g', { class: 'cursor' });
    this.svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.svg.replaceChildren(
      make('defs', {}, make('clipPath', { id: this.clip }, inside)),
      this.grid(this.x.marks(Math.max(3, (right - left) / 110)), levels),
      make('text', { ...middle, x: (left + right) / 2, y: height - 8 },
        titles[0]),
      make('text', { transform: turned, ...middle }, titles[1]),
      make(
        'g', { 'clip-path': `url(#${this.clip})` },
        ...(joined ? [] : stairs(this.spec.front, this)),
        ...series.map((each) => (joined ? line : cloud)(each, spot)),
      ),
      joined ? '' : names(series, this),
      series.some(({ points }) => points.length) ? '' : make('text', {
        ...middle, x: (left + right) / 2, y: (top + bottom) / 2,
      }, 'nothing to show'),
      this.cursor,
    );
    this.box.classList.toggle('zoomed', Boolean(this.view));
    this.pick([]);
  }

  // Lines and texts at marks of both axes, as Axis.marks has them.
  grid(across, up) {
    const { left, right, top, bottom } = this.area;
    const drawn = make('g', { class: 'grid' });
    for (const [value, text] of across) {
      const x = this.x.pixel(value);
      const [half, y] = [4 * text.length, bottom + 18]; // of its width
      const at = Math.min(x, this.width - half).toFixed(1);
      drawn.append(
        make('line', { x1: x, x2: x, y1: top, y2: bottom }),
        make('text', { x: at, y, class: 'x', 'text-anchor': 'middle' }, text),
      );
    }
    for (const [value, text] of up) {
      const y = this.y.pixel(value).toFixed(1);
      const attributes = { class: 'y', 'text-anchor': 'end', dy: '0.32em' };
      drawn.append(
        make('line', { x1: left, x2: right, y1: y, y2: y }),
        make('text', { x: left - 8, y, ...attributes }, text),
      );
    }
    return drawn;
  }

  // Every point that is seen, in pixels.
  spots() {
    const { left, right, top, bottom } = this.area;
    const all = this.spec.series.flatMap((series) =>
      series.points.map((point) => (
        { series, point, x: this.x.pixel(point.x), y: this.y.pixel(point.y) }
      )));
    return all.filter(({ x, y }) =>
      x > left - 1 && x < right + 1 &&
      (this.spec.joined || (y > top - 1 && y < bottom + 1)));
  }

  // What lies next to a pixel: a point of each line, or the nearest point.
  nearest(x, y) {
    const { joined } = this.spec;
    const away = (spot) =>
      (joined ? Math.abs(spot.x - x) : Math.hypot(spot.x - x, spot.y - y));
    const spots = this.spots().sort((a, b) => away(a) - away(b));
    if (!joined) return spots.slice(0, 1).filter((spot) => away(spot) < NEAR);
    const firsts = new Map();
    for (const spot of spots) {
      if (!firsts.has(spot.series)) firsts.set(spot.series, spot);
    }
    return [...firsts.values()]
      .filter((spot) => Math.abs(spot.x - spots[0].x) < NEAR)
      .sort((a, b) => a.y - b.y);
  }

  // Marks what is picked, and tells about it; aloud to those who cannot see it.
  pick(spots, aloud = false) {
    this.picked = spots;
    this.tip.hidden = !spots.length;
    this.cursor.replaceChildren();
    if (!spots.length) return;
    const { top, bottom } = this.area;
    const [{ x, y }] = spots;
    if (this.spec.joined) {
      this.cursor.append(make('line', { x1: x, x2: x, y1: top, y2: bottom }));
    }
    for (const { series, ...at } of spots) {
      if (at.y < top - 7 || at.y > bottom + 7) continue;
      this.cursor.append(mark(series.mark, 6.5, {
        class: `mark s${series.hue}`, transform: `translate(${at.x} ${at.y})`,
      }));
    }
    const { title, rows } = this.spec.read(spots);
    const table = make('table');
    for (const [head, ...cells] of rows) {
      const row = make('tr', {}, make('th', {}, ...[head].flat()));
      row.append(...cells.map((cell) => make('td', {}, cell)));
      table.append(row);
    }
    this.tip.replaceChildren(make('strong', {}, ...[title].flat()), table);
    if (aloud) this.told.textContent = this.tip.innerText;
    const { offsetWidth: wide, offsetHeight: tall } = this.tip;
    const last = this.width - wide;
    const beside = x + 16 < last ? x + 16 : x - 16 - wide;
    this.tip.style.left = `${Math.max(0, Math.min(beside, last))}px`;
    const below = this.spec.joined ? top + 4 : Math.min(y, bottom - tall);
    const high = this.width < SMALL ? this.height : Math.max(top, below);
    this.tip.style.top = `${high}px`;
  }
}
