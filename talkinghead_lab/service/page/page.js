// The page: a portrait and a recording become a job of the API, and its growing video is played.

import { call, getJson } from '/page/api.js';
import { Boxes } from '/page/boxes.js';
import { Dialogue } from '/page/dialogue.js';
import { Media, drawPicture, drawWaveform, recordWith } from '/page/media.js';

const SETTINGS = ['crop', 'diffusion_steps', 'text_guide_scale', 'audio_guide_scale', 'seed', 'max_frames'];
const $ = (id) => document.getElementById(id);
// Screen readers read a status again when it is set, even to the same text.
const note = (id, text) => $(id).textContent === text || ($(id).textContent = text);
const fail = (error) => note('error', withTitles(error.message));

/** A message of the service in which fields are called as the form shows them. */
function withTitles(text) {
  return text.replace(/`(\w+)(?:\.(\d+)[\w.]*)?`/g, (whole, name, place) => {
    const shown = document.querySelector(`label[for="${name}"], fieldset[data-field="${name}"] legend`);
    return shown ? `“${shown.textContent}”${place ? `, number ${Number(place) + 1}` : ''}` : whole;
  });
}

// Guidance over the steps is written without brackets.
const asList = (text) => (text.includes(',') ? `[${text}]` : text);

let presets = [];
let job = null; // the one that is followed, as the API shows it
let sent = null; // what `Copy as curl` repeats
let plan = null;

const image = new Media(() => 'portrait', {
  input: $('image'), drop: $('portrait'), sample: $('sample-image'), note: $('image-note'), onError: fail,
  onChange: async (file) => {
    plan = null;
    if (boxes.size) { // those of another picture
      boxes.use([]);
      masks.remove();
    }
    note('found', '');
    await showPicture();
    replan();
  },
});
const audio = new Media(() => 'recording', {
  input: $('audio'), drop: $('recording'), sample: $('sample-audio'), note: $('audio-note'), onError: fail,
  onChange: async (file) => {
    URL.revokeObjectURL($('sound').src);
    $('sound').src = URL.createObjectURL(file);
    $('sound').hidden = false;
    const seconds = await drawWaveform($('waveform'), file);
    if (seconds) $('audio-note').textContent += `, ${seconds.toFixed(1)} s`;
    replan();
  },
});

const second = new Media(() => 'recording-2', {
  input: $('second-audio'), drop: $('second'), sample: $('second-sample'), note: $('second-note'), onError: fail,
  onChange: (file) => {
    URL.revokeObjectURL($('second-sound').src);
    if (file) $('second-sound').src = URL.createObjectURL(file);
    $('second-sound').hidden = $('second-remove').hidden = !file;
    replan();
  },
});
const masks = new Media(null, {
  input: $('masks-file'), drop: $('masks'), note: $('masks-note'),
  onChange: (file) => {
    $('masks-remove').hidden = !file;
    $('masks-swap').hidden = masks.files.length !== 2;
    $('box-1').disabled = $('box-2').disabled = masks.isChosen;
    showPicture();
    replan();
  },
});
const dialogue = new Dialogue($('parts'), $('part'), () => replan(), fail);
const isDialogue = () => $('audio_mix').value === 'timeline';
const boxes = new Boxes($('picture'), document.querySelectorAll('.box'), [$('box-1'), $('box-2')], () => replan());

async function showPicture() {
  const size = image.file && await drawPicture($('picture'), image.file, plan?.crop, masks.files);
  boxes.show(size, $('two').open && !masks.isChosen);
}

async function findPeople() {
  note('error', '');
  note('found', 'Searching …');
  try {
    const body = form();
    for (const name of ['speaker_boxes', ...(isDialogue() ? [] : ['second_audio_path', 'audio_mix'])]) body.delete(name); // they may not fit yet
    const { people } = await (await call('/api/plan?people=true', { method: 'POST', body })).json();
    boxes.use(people.slice(0, 2));
    note('found', `${people.length} ${people.length === 1 ? 'person' : 'people'} found, counted from the left`);
    replan();
  } catch (error) {
    note('found', '');
    fail(error);
  }
}

/** The request as form data: preset, settings that were changed, prompt and files. */
function form() {
  const fields = { ...presets.find(({ name }) => name === $('preset').value)?.fields, prompt: $('prompt').value };
  for (const name of SETTINGS) if ($(name).value !== '') fields[name] = asList($(name).value);
  delete fields.speaker_boxes;
  if (boxes.text && !masks.isChosen) fields.speaker_boxes = boxes.text;
  if (second.isChosen || isDialogue()) fields.audio_mix = $('audio_mix').value;
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) data.append(name, typeof value === 'object' ? JSON.stringify(value) : value);
  image.addTo(data, 'image_path');
  masks.addTo(data, 'speaker_masks');
  if (isDialogue()) dialogue.addTo(data);
  else {
    audio.addTo(data, 'audio_path');
    second.addTo(data, 'second_audio_path');
  }
  return data;
}

let planned = 0;

/** Ask what the request would do, a moment after the last change. */
function replan() {
  clearTimeout(planned);
  const ready = image.isChosen && (isDialogue() ? dialogue.isComplete : audio.isChosen);
  $('generate').disabled = !ready;
  $('find').disabled = !ready || masks.isChosen;
  note('in-use', inUse().join(', '));
  if (!ready) return;
  planned = setTimeout(async () => {
    try {
      plan = await (await call('/api/plan', { method: 'POST', body: form() })).json();
      note('error', '');
      note('plan', `${plan.frame_size.join(' × ')} pixels, ${plan.seconds.toFixed(1)} s, ${plan.frames} frames in `
        + `${plan.chunks} ${plan.chunks === 1 ? 'chunk' : 'chunks'}, ${plan.forward_passes} forward passes`
        + (plan.skippable_passes ? `, of which the step cache may skip up to ${plan.skippable_passes}` : ''));
      $('warnings').replaceChildren(...plan.warnings.map((text) => Object.assign(document.createElement('li'), { textContent: withTitles(text) })));
      await showPicture();
    } catch (error) {
      note('plan', '');
      fail(error);
    }
  }, 300);
}

/** What of the two speakers' section is sent, also while it is closed. */
function inUse() {
  return [
    isDialogue() ? 'dialogue' : second.isChosen && 'second recording',
    masks.isChosen ? 'masks' : boxes.text && 'boxes',
  ].filter(Boolean);
}

/** A dialogue has its own recordings. */
function showTiming() {
  $('recording').hidden = $('second').hidden = isDialogue();
  $('dialogue').hidden = !isDialogue();
  if (isDialogue() && !dialogue.parts.length) dialogue.add();
  replan();
}

async function generate(event) {
  event.preventDefault();
  if ($('generate').disabled) return;
  note('error', '');
  $('generate').disabled = true;
  try {
    const body = form();
    sent = [...body].map(([name, value]) => `${name}=${value instanceof File ? `@${value.name}` : value}`);
    job = await (await call('/api/jobs', { method: 'POST', body, headers: { 'Idempotency-Key': crypto.randomUUID?.() ?? String(Math.random()) } })).json();
    follow(job.id);
  } catch (error) {
    fail(error);
    $('generate').disabled = false;
  }
}

/** Show the progress of a job until it has ended. */
function follow(id) {
  $('job').hidden = false;
  $('after').hidden = $('empty').hidden = true;
  const started = performance.now();
  const events = new EventSource(`/api/jobs/${id}/events`);
  events.addEventListener('progress', (event) => {
    job = JSON.parse(event.data);
    showProgress(started);
    if (job.state === 'running' && $('video').dataset.job !== id) playFrom(`/api/jobs/${id}/video`, id);
  });
  events.addEventListener('end', (event) => {
    events.close();
    job = JSON.parse(event.data);
    ended();
  });
  events.onerror = () => {
    if (events.readyState !== EventSource.CLOSED) return; // it connects again by itself
    fail(new Error('The connection to the service is lost. The job may go on: reload the page to see it.'));
    $('generate').disabled = false;
  };
}

function showProgress(started) {
  const seconds = Math.round((performance.now() - started) / 1000);
  $('progress').value = job.fraction;
  if (job.steps === 0) $('progress').removeAttribute('value');
  // Not part of the status: it changes every second.
  note('left', job.seconds_left === null ? '' : `About ${duration(job.seconds_left)} left`);
  if (job.state === 'waiting') note('state', `Waiting, ${job.position} ahead`);
  else if (job.steps === 0) note('state', `Reading and loading, ${seconds} s`);
  else note('state', `${job.place[0].toUpperCase()}${job.place.slice(1)}`);
}

const duration = (seconds) => (seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`);

function playFrom(url, id, at = 0) {
  const video = $('video');
  video.dataset.job = id;
  video.src = url;
  $('this-video').hidden = false;
  $('empty').hidden = true;
  if (at) video.currentTime = at;
  video.play().catch(() => {}); // a browser may want a click first
}

function ended() {
  $('generate').disabled = false;
  $('job').hidden = true;
  if (job.state !== 'finished') {
    $('this-video').hidden = true;
    $('video').removeAttribute('src');
    delete $('video').dataset.job;
    $('empty').hidden = false;
    fail(new Error(job.state === 'stopped' ? 'Stopped.' : job.problem.detail));
    return;
  }
  const { video_path: path, resolution, duration_seconds: seconds } = job.result;
  show(`/api/videos/${path.split('/').slice(-2).map(encodeURIComponent).join('/')}`, `${resolution}, ${seconds.toFixed(1)} s`, job.id);
  listRuns();
}

/** Show a finished video; what plays goes on where it is. */
function show(url, caption, id) {
  const at = $('video').dataset.job === id ? $('video').currentTime : 0;
  playFrom(url, id, at);
  note('video-caption', caption);
  $('download').href = url;
  $('after').hidden = false;
}

async function listRuns() {
  const runs = await getJson('/api/videos');
  $('earlier').hidden = runs.length === 0;
  $('runs').replaceChildren(...runs.map((run) => {
    const [item, button, time] = ['li', 'button', 'time'].map((tag) => document.createElement(tag));
    const date = new Date(run.created * 1000);
    Object.assign(time, { textContent: date.toLocaleString(), dateTime: date.toISOString() });
    button.type = 'button';
    button.append(Object.assign(document.createElement('span'), { textContent: caption(run) }), time);
    button.addEventListener('click', () => {
      sent = null;
      job = { id: run.id };
      show(run.url, caption(run), run.id);
      $('copy-curl').hidden = true;
    });
    item.append(button);
    return item;
  }));
  const chosen = $('compare').value;
  $('compare').replaceChildren(new Option('nothing', ''), ...runs.map((run) => new Option(`${caption(run)} (${new Date(run.created * 1000).toLocaleTimeString()})`, run.url)));
  $('compare').value = chosen;
}

const caption = (run) => `${run.prompt || 'no prompt'}, ${run.fields.diffusion_steps} ${run.fields.diffusion_steps === 1 ? 'step' : 'steps'}, seed ${run.fields.seed}`;

function compare() {
  const url = $('compare').value;
  $('other-video').hidden = url === '';
  if (url) $('compared').src = url;
  note('compared-caption', $('compare').selectedOptions[0]?.textContent ?? '');
}

/** The service disconnects a player that reads nothing for a minute, such as one that is paused: go on from there. */
function resume() {
  const at = $('video').currentTime;
  if (job?.state === 'running') setTimeout(() => playFrom(`/api/jobs/${job.id}/video`, job.id, at), 1000);
}

/** The compared video follows the other: play, pause and position. */
function synchronise() {
  const [video, compared] = [$('video'), $('compared')];
  for (const kind of ['play', 'pause', 'seeking']) {
    video.addEventListener(kind, () => {
      if ($('other-video').hidden) return;
      compared.currentTime = video.currentTime;
      if (kind === 'play') compared.play().catch(() => {});
      if (kind === 'pause') compared.pause();
    });
  }
  compared.addEventListener('loadedmetadata', () => {
    compared.currentTime = video.currentTime; // also shows a frame, which an element without it does not everywhere
    if (!video.paused) compared.play().catch(() => {});
  });
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    note('copied', `${what} is copied.`);
  } catch {
    note('copied', text); // without https there is no clipboard: select it by hand
  }
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl() {
  return [`curl ${location.origin}/api/jobs`, ...sent.map((part) => `  --form ${quoted(part)}`)].join(' \\\n');
}

function usePreset() {
  const fields = presets.find(({ name }) => name === $('preset').value)?.fields ?? {};
  for (const name of SETTINGS) $(name).value = [fields[name] ?? (name === 'crop' ? 'center' : '')].flat().join(', ');
  boxes.use(fields.speaker_boxes ?? []);
  if (fields.speaker_boxes) $('two').open = true;
  replan();
}

async function start() {
  const health = await (await fetch('/api/health')).json();
  note('health', `${health.status === 'healthy' ? 'Ready' : health.reason}, on ${health.gpu_available ? 'a GPU' : 'the processor'}, version ${health.version}`);
  presets = await getJson('/api/presets');
  $('preset').replaceChildren(...presets.map(({ name, title }) => new Option(title, name)));
  replan(); // the first preset changes nothing: settings that are typed by now stay
  await listRuns();
  const going = (await getJson('/api/jobs')).findLast(({ state }) => state === 'running' || state === 'waiting');
  if (going) {
    job = going;
    follow(going.id);
  }
}

$('generate').disabled = $('find').disabled = true;
$('request').addEventListener('submit', generate);
$('preset').addEventListener('change', usePreset);
for (const name of SETTINGS) $(name).addEventListener('change', replan);
$('audio_mix').addEventListener('change', showTiming);
$('add-part').addEventListener('click', () => dialogue.add());
$('two').addEventListener('toggle', showPicture);
$('second-remove').addEventListener('click', () => second.remove());
$('masks-swap').addEventListener('click', () => masks.use(masks.files.toReversed()));
$('masks-remove').addEventListener('click', () => masks.remove());
$('find').addEventListener('click', findPeople);
$('stop').addEventListener('click', () => call(`/api/jobs/${job.id}`, { method: 'DELETE' }).catch(fail));
$('video').addEventListener('error', resume);
$('compare').addEventListener('change', compare);
$('copy-yaml').addEventListener('click', async () => copy(await (await call(`/api/jobs/${job.id}/request`)).text(), 'The request'));
$('copy-curl').addEventListener('click', () => copy(curl(), 'The command'));
// The waveform is drawn in the colour of the theme.
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => audio.file && drawWaveform($('waveform'), audio.file));
recordWith($('record'), (file) => audio.use([file]), (text) => note('audio-note', text));
synchronise();
start().catch(fail);
