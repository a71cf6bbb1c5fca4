// A dialogue: its parts, each with a speaker, a start, an end and a recording of its own.

import { Media } from '/page/media.js';

export class Dialogue {
  /** `list` receives a copy of `template` for each part; `onChange` is called after a change. */
  constructor(list, template, onChange, onError) {
    Object.assign(this, { list, template, onChange, onError, parts: [] });
  }

  get isComplete() {
    return this.parts.length > 0 && this.parts.every(({ media }) => media.isChosen);
  }

  add() {
    const row = this.template.content.cloneNode(true).firstElementChild;
    const [speaker, start, end] = ['speaker', 'start', 'end'].map((name) => row.querySelector(`.${name}`));
    const media = new Media(() => (speaker.value === '1' ? 'recording' : 'recording-2'), {
      input: row.querySelector('input[type=file]'), drop: row, sample: row.querySelector('.sample'), note: row.querySelector('.note'),
      onError: this.onError,
      onChange: async (file) => {
        part.seconds = await length(file);
        if (part.seconds) media.note.textContent += `, ${part.seconds.toFixed(1)} s`;
        this.onChange();
      },
    });
    const part = { row, speaker, start, end, media, seconds: null };
    const last = this.parts.at(-1);
    if (last) start.value = last.end.value || Number((Number(last.start.value) + last.seconds).toFixed(2));
    for (const field of [speaker, start, end]) field.addEventListener('change', this.onChange);
    speaker.addEventListener('change', () => media.sample && media.useSample().catch(this.onError));
    row.querySelector('.remove').addEventListener('click', () => {
      this.parts.splice(this.parts.indexOf(part), 1);
      this.arrange();
    });
    this.parts.push(part);
    this.arrange();
  }

  /** Show the parts with their numbers, after one has come or gone. */
  arrange() {
    this.list.replaceChildren(...this.parts.map(({ row }) => row));
    this.parts.forEach(({ row }, number) => (row.querySelector('legend').textContent = `Part ${number + 1}`));
    this.onChange();
  }

  addTo(form) {
    const parts = this.parts.map(({ speaker, start, end }) => ({
      speaker: Number(speaker.value), start: Number(start.value), ...(end.value && { end: Number(end.value) }),
    }));
    form.append('segments', JSON.stringify(parts));
    this.parts.forEach(({ media }, number) => media.addTo(form, `segments.${number}`));
  }
}

/** Seconds of a recording, or null if the browser cannot play it; the service may. */
async function length(file) {
  const sound = new Audio(URL.createObjectURL(file));
  try {
    await new Promise((resolve, reject) => Object.assign(sound, { onloadedmetadata: resolve, onerror: reject }));
    return sound.duration;
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(sound.src);
  }
}
