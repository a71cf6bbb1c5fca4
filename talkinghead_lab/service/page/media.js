// The files of a request: chosen, dropped, recorded or a sample; shown as picture and waveform.

import { call } from '/page/api.js';

const MASK_COLOURS = ['red', 'lime']; // of the first and the second speaker, as in one mask for all

/** What a field of the request is to be: `files` are shown, and uploaded unless they are a `sample` of the service. */
export class Media {
  /** `sampleName` tells which sample the button `sample` uses; without a button there is none. */
  constructor(sampleName, { input, drop, sample, note, onChange, onError }) {
    Object.assign(this, { sampleName, input, note, onChange, files: [], sample: null });
    input.addEventListener('change', () => input.files[0] && this.use([...input.files]));
    sample?.addEventListener('click', () => this.useSample().catch(onError));
    drop.addEventListener('dragover', (event) => {
      event.preventDefault();
      drop.classList.add('over');
    });
    drop.addEventListener('dragleave', (event) => drop.contains(event.relatedTarget) || drop.classList.remove('over'));
    drop.addEventListener('drop', (event) => {
      event.preventDefault();
      drop.classList.remove('over');
      const files = [...event.dataTransfer.files];
      if (files[0]) this.use(input.multiple ? files : files.slice(0, 1));
    });
  }

  get isChosen() {
    return this.files.length > 0;
  }

  get file() {
    return this.files[0] ?? null;
  }

  use(files) {
    [this.files, this.sample] = [files, null];
    this.note.textContent = files.map((file) => `${file.name}, ${size(file.size)}`).join('; ');
    this.onChange(this.file);
  }

  async useSample() {
    const name = this.sampleName();
    const content = await (await call(`/api/samples/${name}`)).blob();
    [this.files, this.sample] = [[new File([content], name, { type: content.type })], `sample:${name}`];
    this.input.value = '';
    this.note.textContent = 'The sample that comes with the service';
    this.onChange(this.file);
  }

  remove() {
    [this.files, this.sample] = [[], null];
    this.input.value = this.note.textContent = '';
    this.onChange(null);
  }

  addTo(form, field) {
    if (this.sample) form.append(field, this.sample);
    else for (const file of this.files) form.append(field, file, file.name);
  }
}

export const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

/** Draw a picture, or the first frame of a video, with the part outside `crop` dimmed and the speakers' `masks` tinted.
 *  Returns its width and height. */
export async function drawPicture(canvas, file, crop = null, masks = []) {
  const [picture, ...layers] = await Promise.all([file, ...masks].map(decoded));
  if (!picture) {
    canvas.hidden = true;
    return null;
  }
  const scale = Math.min(1, 640 / picture.width, 480 / picture.height);
  canvas.width = Math.round(picture.width * scale);
  canvas.height = Math.round(picture.height * scale);
  const draw = canvas.getContext('2d');
  draw.drawImage(picture, 0, 0, canvas.width, canvas.height);
  drawMasks(draw, layers);
  let told = `Portrait of ${picture.width} × ${picture.height} pixels`;
  if (crop) {
    const [left, top, right, bottom] = crop.map((edge) => edge * scale);
    draw.fillStyle = 'rgb(0 0 0 / .55)';
    const outside = new Path2D();
    outside.rect(0, 0, canvas.width, canvas.height);
    outside.rect(left, top, right - left, bottom - top);
    draw.fill(outside, 'evenodd');
    draw.strokeStyle = '#ffd166';
    draw.lineWidth = 3;
    draw.strokeRect(left + 1.5, top + 1.5, right - left - 3, bottom - top - 3);
    told += `; the frame shows columns ${crop[0]} to ${crop[2]}, rows ${crop[1]} to ${crop[3]}`;
  }
  canvas.ariaLabel = told;
  canvas.hidden = false;
  return [picture.width, picture.height];
}

/** Several masks are white, each for a speaker; one for all has the colours itself. */
function drawMasks(draw, masks) {
  const { width, height } = draw.canvas;
  draw.save();
  Object.assign(draw, { globalCompositeOperation: 'screen', globalAlpha: 0.6 });
  masks.forEach((mask, speaker) => {
    if (!mask) return; // the service says what is wrong with it
    const layer = new OffscreenCanvas(width, height).getContext('2d');
    layer.drawImage(mask, 0, 0, width, height);
    if (masks.length > 1) {
      Object.assign(layer, { globalCompositeOperation: 'multiply', fillStyle: MASK_COLOURS[speaker] ?? 'blue' });
      layer.fillRect(0, 0, width, height);
    }
    draw.drawImage(layer.canvas, 0, 0);
  });
  draw.restore();
}

async function decoded(file) {
  if (!file.type.startsWith('video/')) return createImageBitmap(file).catch(() => null);
  const video = Object.assign(document.createElement('video'), { muted: true, preload: 'auto', src: URL.createObjectURL(file) });
  try {
    await new Promise((resolve, reject) => Object.assign(video, { onloadeddata: resolve, onerror: reject }));
    return await createImageBitmap(video);
  } catch {
    return null; // the browser cannot decode it; the service may
  } finally {
    URL.revokeObjectURL(video.src);
  }
}

/** Draw peaks of the first channel; returns the length in seconds, or null if the browser cannot decode the file. */
export async function drawWaveform(canvas, file) {
  const context = new OfflineAudioContext(1, 1, 16000);
  const sound = await context.decodeAudioData(await file.arrayBuffer()).catch(() => null);
  canvas.hidden = sound === null;
  if (!sound) return null;
  const samples = sound.getChannelData(0);
  const draw = canvas.getContext('2d');
  const { width, height } = canvas;
  draw.clearRect(0, 0, width, height);
  draw.fillStyle = getComputedStyle(canvas).color;
  const step = Math.max(1, Math.floor(samples.length / width));
  for (let x = 0; x < width; x++) {
    let peak = 0;
    for (let i = x * step; i < Math.min((x + 1) * step, samples.length); i++) peak = Math.max(peak, Math.abs(samples[i]));
    draw.fillRect(x, (height * (1 - peak)) / 2, 1, Math.max(1, height * peak));
  }
  canvas.ariaLabel = `Waveform of ${sound.duration.toFixed(1)} seconds`;
  return sound.duration;
}

/** Record the microphone between two clicks of a button. */
export function recordWith(button, onRecorded, onError) {
  let recorder = null;
  button.addEventListener('click', async () => {
    if (recorder) {
      recorder.stop();
      return;
    }
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      recorder = new MediaRecorder(stream);
      const pieces = [];
      recorder.ondataavailable = (event) => pieces.push(event.data);
      recorder.onstop = () => {
        stream.getTracks().forEach((track) => track.stop());
        const type = recorder.mimeType.split(';')[0];
        recorder = null;
        button.textContent = 'Record';
        button.setAttribute('aria-pressed', 'false');
        onRecorded(new File(pieces, `recording.${type.split('/')[1]}`, { type }));
      };
      recorder.start();
      button.textContent = 'Stop recording';
      button.setAttribute('aria-pressed', 'true');
    } catch (error) {
      const reason = navigator.mediaDevices ? error.message : 'the page must be opened as localhost or by https';
      onError(`The microphone cannot be used: ${reason}`);
    }
  });
}
