// Tables that are sorted by the head of a column, strips, and the theme.

// What a cell is sorted by: the number it was given, or else its text; null if
// it has neither.
function sortKey(cell) {
  if ('value' in cell.dataset) {
    const value = Number(cell.dataset.value);
    return Number.isFinite(value) ? value : null;
  }
  const text = cell.textContent.trim();
  return text === '' || text === '-' ? null : text;
}

function compared(a, b) {
  if (typeof a === 'number' && typeof b === 'number') return a - b;
  return String(a).localeCompare(String(b), 'en', { numeric: true });
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  heads.forEach((head, column) => {
    const button = make('button', { type: 'button' }, ...head.childNodes);
    head.append(button);
    head.setAttribute('aria-sort', 'none');
    button.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'ascending';
      for (const each of heads) each.setAttribute('aria-sort', 'none');
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const keyed = rows.map((row) => [sortKey(row.cells[column]), row]);
      keyed.sort(([a], [b]) => { // what is not there comes last, either way
        if (a === null || b === null) return (a === null) - (b === null);
        return down ? compared(b, a) : compared(a, b);
      });
      table.tBodies[0].append(...keyed.map(([, row]) => row));
    });
  });
}

// Points out every layer that reads what the one under the pointer reads.
function strips(drawing) {
  drawing.addEventListener('pointerover', (event) => {
    const cell = event.target.closest('.cell');
    for (const each of drawing.querySelectorAll('.cell')) {
      const same = cell && each.parentNode === cell.parentNode &&
        each.dataset.row === cell.dataset.row;
      each.classList.toggle('same', Boolean(same));
    }
  });
  drawing.addEventListener('pointerleave', () => {
    for (const each of drawing.querySelectorAll('.same')) {
      each.classList.remove('same');
    }
  });
}

function themed(button) {
  const root = document.documentElement;
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const now = () => root.dataset.theme || (dark.matches ? 'dark' : 'light');
  const other = () => (now() === 'dark' ? 'light' : 'dark');
  const told = () => {
    button.textContent = other() === 'dark' ? 'Dark theme' : 'Light theme';
  };
  const kept = store('getItem');
  if (kept === 'dark' || kept === 'light') root.dataset.theme = kept;
  button.addEventListener('click', () => {
    root.dataset.theme = other();
    store('setItem', root.dataset.theme);
    told();
  });
  dark.addEventListener('change', told);
  button.hidden = false;
  told();
}

// A page opened from a disk may have no storage.
function store(method, ...values) {
  try {
    return localStorage[method]('shared_tfm-theme', ...values);
  } catch {
    return null;
  }
}
