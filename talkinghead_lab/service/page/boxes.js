// The boxes of two speakers over the picture: dragged, moved and resized by arrow keys, or typed as numbers.

const SMALLEST = 16; // pixels of the picture
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const CORNER = 16; // pixels of the screen, at the lower right, that resize a box

export class Boxes {
  /** `shown` are the elements over `canvas`, `inputs` hold the numbers; `onChange` is called after a change. */
  constructor(canvas, shown, inputs, onChange) {
    Object.assign(this, { canvas, shown: [...shown], inputs, onChange, size: null, visible: false });
    this.shown.forEach((box, which) => {
      box.addEventListener('pointerdown', (event) => this.drag(event, which));
      box.addEventListener('keydown', (event) => this.step(event, which));
    });
    for (const input of inputs) {
      input.addEventListener('change', () => {
        this.place();
        onChange();
      });
    }
    new ResizeObserver(() => this.place()).observe(canvas);
  }

  /** Both boxes as the request takes them, as they are shown if only one is typed; null: none is. */
  get text() {
    if (!this.inputs.some(({ value }) => value.trim())) return null;
    return `[${this.inputs.map(({ value }, which) => `[${value.trim() || this.edges[which]}]`)}]`;
  }

  /** [left, top, right, bottom] of each; a box that is not typed is a half of the picture. */
  get edges() {
    const [width, height] = this.size ?? [0, 0];
    const halves = [[0, 0, Math.floor(width / 2), height], [Math.floor(width / 2), 0, width, height]];
    return this.inputs.map(({ value }, which) => {
      const numbers = value.split(',').map(Number);
      return value.trim() && numbers.length === 4 && numbers.every(Number.isFinite) ? numbers : halves[which];
    });
  }

  /** Replace the boxes. */
  use(boxes) {
    this.inputs.forEach((input, which) => (input.value = boxes[which]?.join(', ') ?? ''));
    this.place();
  }

  /** The picture has this `size`, null if there is none; the boxes are shown over it if they are `visible`. */
  show(size, visible) {
    Object.assign(this, { size, visible: visible && size !== null });
    this.place();
  }

  place() {
    for (const box of this.shown) box.hidden = !this.visible;
    if (!this.visible) return;
    const scale = this.canvas.offsetWidth / this.size[0];
    this.edges.forEach(([left, top, right, bottom], which) => {
      const { style } = this.shown[which];
      style.left = `${this.canvas.offsetLeft + left * scale}px`;
      style.top = `${this.canvas.offsetTop + top * scale}px`;
      style.width = `${(right - left) * scale}px`;
      style.height = `${(bottom - top) * scale}px`;
    });
  }

  drag(down, which) {
    const box = this.shown[which];
    const [from, scale] = [this.edges[which], this.canvas.offsetWidth / this.size[0]];
    const resizes = down.offsetX > box.clientWidth - CORNER && down.offsetY > box.clientHeight - CORNER;
    const move = (event) => this.change(which, from, (event.clientX - down.clientX) / scale, (event.clientY - down.clientY) / scale, resizes);
    box.setPointerCapture(down.pointerId);
    box.addEventListener('pointermove', move);
    box.addEventListener('lostpointercapture', () => {
      box.removeEventListener('pointermove', move);
      this.onChange();
    }, { once: true });
  }

  step(event, which) {
    const arrow = ARROWS[event.key];
    if (!arrow) return;
    event.preventDefault();
    const pixels = Math.max(1, Math.round(Math.max(...this.size) / 100));
    this.change(which, this.edges[which], arrow[0] * pixels, arrow[1] * pixels, event.shiftKey);
    this.onChange();
  }

  /** Move a box, or its right and lower edge, and keep it within the picture. */
  change(which, [left, top, right, bottom], dx, dy, resizes) {
    const within = (value, low, high) => Math.round(Math.min(Math.max(value, low), high));
    const [width, height] = this.size;
    const all = this.edges;
    if (resizes) all[which] = [left, top, within(right + dx, left + SMALLEST, width), within(bottom + dy, top + SMALLEST, height)];
    else {
      const [x, y] = [within(left + dx, 0, width - (right - left)), within(top + dy, 0, height - (bottom - top))];
      all[which] = [x, y, x + right - left, y + bottom - top];
    }
    this.use(all);
  }
}
