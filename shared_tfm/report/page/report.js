// Brings the page to life. Until here it is all there, but stands still.

themed(document.getElementById('theme'));
document.querySelectorAll('table.sortable').forEach(sortable);
document.querySelectorAll('.strips svg').forEach(strips);
const [over, cost] = document.querySelectorAll('figure[data-chart]');
frame(over, curves, {
  kind: ['loss', { validation: 'validation', training: 'training' }],
  across: ['across', { steps: 'steps', tokens: 'tokens', flops: 'FLOPs' }],
  lines: ['lines', { means: 'mean and range', runs: 'every run' }],
});
frame(cost, costs, { cost: ['against', {
  params: 'parameters', flops: 'FLOPs', seconds: 'time', memory: 'memory',
}] });
redraw();
document.querySelector('.hint').hidden = false;
for (const still of document.querySelectorAll('.still')) still.hidden = true;
