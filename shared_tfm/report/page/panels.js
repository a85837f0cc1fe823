// What the charts show, and the controls around them.

const data = JSON.parse(document.getElementById('data').textContent);
const shown = data.schemes.map(() => true);
const LOSS = 'loss (nats per target)';
const ACROSS = {
  steps: ['optimizer steps', ''],
  tokens: ['tokens seen', ''],
  flops: ['training compute', 'FLOP'],
};
const finite = (value) => value !== null;
const visible = (i) => shown[i];
const digits = (loss) => (loss < 1e6 ? loss.toFixed(4) : human(loss));
const mean = (values) => values.reduce((a, b) => a + b) / values.length;

function plusMinus([mean, spread], show) {
  return show(mean) + (spread === null ? '' : ` ± ${show(spread)}`);
}

// --- losses over training ---

// The runs of each scheme as one line: the mean, from the least to the most, at
// the steps that all of them reached; elsewhere the mean would change seeds.
function averaged(lines, across) {
  return data.schemes.map((scheme, i) => {
    const runs = lines.filter((run) => run.scheme === i);
    const common = (runs[0]?.steps || []).filter((step) =>
      runs.every((run) => run.steps.includes(step)));
    return { ...scheme, i, points: common.map((step) => {
      const at = runs.map((run) => run.steps.indexOf(step));
      const losses = runs.map((run, k) => run.loss[at[k]]);
      const lost = losses.some((loss) => !finite(loss));
      return {
        x: mean(runs.map((run, k) => run[across][at[k]])),
        y: lost ? null : mean(losses),
        low: Math.min(...losses),
        high: Math.max(...losses),
        step,
      };
    }) };
  });
}

function single(lines, across) {
  return lines.map((run) => ({
    ...data.schemes[run.scheme],
    i: run.scheme,
    thin: true,
    seed: run.seed,
    points: run.steps.map((step, k) => (
      { x: run[across][k], y: run.loss[k], step }
    )),
  }));
}

// Without points that have no loss; no line leads over where they were.
function whole(series) {
  const points = series.points.map((point, k) => (
    { ...point, gap: k > 0 && !finite(series.points[k - 1].y) }
  ));
  return { ...series, points: points.filter(({ y }) => finite(y)) };
}

// What is seen of values: all of them, with a margin.
function range(values, margin = 0.05) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (!values.length) return [0, 1];
  const room = margin * (high - low) || Math.abs(high) * 0.01 || 1;
  return [low - room, high + room];
}

function curves({ kind, across, lines }) {
  const [title, unit] = ACROSS[across];
  const draw = lines === 'means' ? averaged : single;
  const made = draw(data.curves[kind], across);
  const series = made.map(whole).filter(({ i }) => visible(i));
  const points = series.flatMap((each) => each.points);
  const last = Math.max(0, ...points.map(({ x }) => x));
  // The loss falls so fast at first that the axis is made for what comes later.
  const late = points.filter(({ x }) => x >= data.early * last);
  return {
    series,
    joined: true,
    x: new Axis(false, unit),
    titles: [title, `${kind} ${LOSS}`],
    home: [
      [0, last || 1],
      range(late.flatMap(({ y, low = y, high = y }) => [low, y, high])),
    ],
    read(spots) {
      const same = spots.every(({ point }) => point.x === spots[0].point.x);
      const rows = spots.map(({ series: { name, seed, ...look }, point }) => {
        const { x, y, low, high } = point;
        const band = high > low ? `${digits(low)} to ${digits(high)}` : '';
        const of = seed === undefined ? name : `${name}, seed ${seed}`;
        const where = same ? [] : [`at ${human(x, unit)}`];
        return [[swatch(look), of], digits(y), band, ...where];
      });
      const { x, step } = spots[0].point;
      const at = across === 'steps' ? step : human(x, unit);
      return { title: `${same ? '' : 'about '}${at} ${title}`, rows };
    },
  };
}

// --- what it costs ---

function costs({ cost }) {
  const { title, unit } = data.costs.find(({ name }) => name === cost);
  const series = data.points.map((point, i) => {
    const [[x, across], [y, up]] = [point[cost], point.loss];
    return { ...data.schemes[i], i, points: [{
      x, y, low: y - up, high: y + up, stats: point,
      left: Math.max(x - across, x / 9), right: x + across,
    }] };
  }).filter(({ i, points: [{ x, y }] }) => visible(i) && x > 0 && finite(y));
  const points = series.map(({ points: [point] }) => point);
  const best = front(points);
  const logs = (key) => points.map((point) => Math.log10(point[key]));
  const [low, high] = range([...logs('left'), ...logs('right')], 0.12);
  const wider = Math.max(0, 0.15 - (high - low) / 2); // in all, 2 x
  return {
    series,
    joined: false,
    front: best,
    x: new Axis(true, unit),
    titles: [`${title} (log scale)`, `validation ${LOSS}`],
    home: [
      [low - wider, high + wider],
      range(points.flatMap((point) => [point.low, point.high]), 0.12),
    ],
    read([{ series: look, point }]) {
      const { stats } = point;
      const rows = [
        ['validation loss', plusMinus(stats.loss, digits)],
        ...data.costs.map((each) => {
          const [mean, spread] = stats[each.name]; // counts have a spread of 0
          const show = (value) => human(value, each.unit);
          return [each.title, plusMinus([mean, spread || null], show)];
        }),
        ['seeds', String(stats.seeds)],
        [best.includes(point) ? 'on the front' : 'behind the front', ''],
      ];
      return { title: [swatch(look), look.name], rows };
    },
  };
}

// --- around a chart: what to choose, buttons, the legend ---

const redraws = [];

// Puts a chart into its figure. `build` makes what it shows of what is chosen;
// options have a title, and the text of each value, the first of which holds.
function frame(figure, build, options) {
  const choice = {};
  const box = make('div', { class: 'plot' });
  const chart = new Chart(box, figure.dataset.label);
  const closer = follow(chart);
  const bar = make('div', { class: 'controls' });
  for (const [key, [title, values]] of Object.entries(options)) {
    const group = make('fieldset', {}, make('legend', {}, title));
    [choice[key]] = Object.keys(values);
    for (const [value, text] of Object.entries(values)) {
      const input = make('input', {
        type: 'radio', name: `${figure.dataset.chart}-${key}`, value,
      });
      input.checked = value === choice[key];
      input.addEventListener('change', () => {
        choice[key] = value;
        chart.show(build(choice));
      });
      group.append(make('label', {}, input, make('span', {}, text)));
    }
    bar.append(group);
  }
  const buttons = make('div', { class: 'buttons' });
  for (const [text, label, act] of [
    ['+', 'Zoom in', () => closer(1 / 1.5)],
    ['−', 'Zoom out', () => closer(1.5)],
    ['Reset', 'Reset the zoom', () => chart.zoom(null)],
  ]) {
    const told = { type: 'button', 'aria-label': label };
    const button = make('button', told, text);
    button.addEventListener('click', act);
    buttons.append(button);
  }
  bar.append(buttons);
  figure.append(bar, box, legend());
  redraws.push(() => chart.show(build(choice), true));
  chart.show(build(choice));
}

function legend() {
  const list = make('div', { class: 'legend', role: 'group' });
  list.setAttribute('aria-label', 'Schemes that are shown');
  data.schemes.forEach((scheme, i) => {
    const { name } = scheme;
    const button = make('button', { type: 'button' }, swatch(scheme), name);
    button.addEventListener('click', () => {
      shown[i] = !shown[i];
      redraw();
    });
    button.addEventListener('dblclick', () => {
      const alone = shown.every((on, k) => on === (k === i));
      shown.forEach((_, k) => { shown[k] = alone || k === i; });
      redraw();
    });
    redraws.push(() => button.setAttribute('aria-pressed', String(shown[i])));
    list.append(button);
  });
  return list;
}

function redraw() {
  redraws.forEach((each) => each());
}
