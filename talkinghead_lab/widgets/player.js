// Plays videos side by side in sync. The longest one is the leader; the others are corrected when they drift.
const FRAME = 1 / 25;
const LARGEST_DRIFT = 0.06; // seconds; a smaller offset of lips and sound is not noticeable
const SPEEDS = [1, 0.5, 0.25];
const ICONS = {
  play: "M8 5v14l11-7z",
  pause: "M6 5h4v14H6zM14 5h4v14h-4z",
  back: "M6 6h2v12H6zM20 6v12l-9-6z",
  next: "M4 6v12l9-6zM16 6h2v12h-2z",
  sound: "M3 9v6h4l5 5V4L7 9zM16.5 12A4.5 4.5 0 0 0 14 8v8a4.5 4.5 0 0 0 2.5-4z",
};

function node(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

function button(name, title, onclick) {
  const made = node("button", { type: "button", title, onclick }, icon(name));
  made.setAttribute("aria-label", title);
  return made;
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}.${Math.floor((seconds % 1) * 10)}`;
}

class Stage {
  constructor(model, el) {
    this.model = model;
    this.urls = [];
    this.videos = [];
    this.keys = [];
    this.tiles = node("div", { className: "thl-tiles" });
    this.controls = this.makeControls();
    el.classList.add("thl-player");
    el.append(this.tiles, this.controls);
    el.addEventListener("keydown", (event) => this.key(event));
    this.show();
  }

  makeControls() {
    this.toggle = button("play", "Play or pause (space)", () => this.play(this.leader.paused));
    this.seek = node("input", { type: "range", min: 0, max: 1000, value: 0, title: "Time", ariaLabel: "Time" });
    this.seek.oninput = () => this.go((this.seek.value / 1000) * this.duration);
    this.time = node("span", { className: "thl-time" });
    this.loop = node("input", { type: "checkbox", checked: true });
    this.speed = node("select", { title: "Speed", ariaLabel: "Speed" });
    this.speed.append(...SPEEDS.map((speed) => node("option", { value: speed, textContent: `${speed}×` })));
    this.speed.onchange = () => this.videos.forEach((video) => (video.playbackRate = this.speed.value));
    return node(
      "div",
      { className: "thl-transport" },
      this.toggle,
      button("back", "One frame back (←)", () => this.step(-FRAME)),
      button("next", "One frame on (→)", () => this.step(FRAME)),
      this.seek,
      this.time,
      this.speed,
      node("label", {}, this.loop, "loop"),
    );
  }

  get leader() {
    return this.videos.reduce((one, other) => (other.duration > one.duration ? other : one), this.videos[0]);
  }

  get duration() {
    return Math.max(0, ...this.videos.map((video) => video.duration || 0));
  }

  show() {
    const clips = this.model.get("clips");
    const previous = this.leader && { time: this.leader.currentTime, playing: !this.leader.paused, key: this.keys[0] };
    this.release();
    this.keys = clips.map((clip) => clip.key);
    this.tiles.replaceChildren(...clips.map((clip, place) => this.tile(clip, place)));
    if (!clips.length) {
      this.tiles.append(node("p", { className: "thl-hint", textContent: this.model.get("hint") }));
    }
    this.controls.hidden = !this.videos.length;
    if (!this.leader) return;
    this.hear(0);
    this.listen();
    if (previous && previous.key === this.keys[0]) {
      this.leader.addEventListener("loadedmetadata", () => this.resume(previous), { once: true });
    }
  }

  resume(previous) {
    this.go(Math.min(previous.time, this.duration));
    if (previous.playing) this.play(true);
  }

  tile(clip, place) {
    const url = URL.createObjectURL(new Blob([clip.content], { type: clip.kind }));
    this.urls.push(url);
    const caption = node("figcaption", {}, node("b", { textContent: clip.title }), node("span", { textContent: clip.note }));
    if (!clip.kind.startsWith("video")) {
      return node("figure", {}, node("img", { src: url, alt: clip.title }), caption);
    }
    const video = node("video", { src: url, playsInline: true, preload: "auto" });
    const heard = this.videos.length;
    video.onclick = () => this.play(this.leader.paused);
    this.videos.push(video);
    const speaker = button("sound", "Hear this one", () => this.hear(heard));
    speaker.className = "thl-speaker";
    return node("figure", {}, node("div", { className: "thl-screen" }, video, speaker), caption);
  }

  hear(chosen) {
    this.videos.forEach((video, place) => {
      video.muted = place !== chosen;
      video.parentElement.classList.toggle("thl-heard", place === chosen);
    });
  }

  listen() {
    const updateIcon = () => this.toggle.replaceChildren(icon((this.leader?.paused ?? true) ? "play" : "pause"));
    for (const video of this.videos) {
      video.onplay = video.onpause = updateIcon;
      video.onended = () => video === this.leader && this.end();
      video.onloadedmetadata = video.ontimeupdate = video.onseeked = () => this.tick();
    }
    updateIcon();
  }

  end() {
    if (!this.loop.checked) return;
    this.go(0);
    this.play(true);
  }

  tick() {
    if (!this.leader) return;
    const now = this.leader.currentTime;
    if (this.duration) this.seek.value = (1000 * now) / this.duration;
    this.time.textContent = `${clock(now)} / ${clock(this.duration)}`;
    for (const video of this.videos) {
      if (!video.ended && Math.abs(video.currentTime - now) > LARGEST_DRIFT && now < video.duration) {
        video.currentTime = now;
      }
    }
  }

  play(on) {
    for (const video of this.videos) {
      video.playbackRate = this.speed.value;
      // A browser may refuse to play sound before the first click on the page.
      if (on) video.play().catch(() => {});
      else video.pause();
    }
  }

  go(seconds) {
    for (const video of this.videos) video.currentTime = Math.min(seconds, video.duration || seconds);
  }

  step(seconds) {
    this.play(false);
    this.go(Math.max(0, this.leader.currentTime + seconds));
  }

  key(event) {
    const action = {
      " ": () => this.play(this.leader.paused),
      ArrowLeft: () => this.step(-FRAME),
      ArrowRight: () => this.step(FRAME),
    }[event.key];
    if (!action || !this.leader || event.target.tagName === "SELECT") return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }

  release() {
    // Loading from a revoked URL is an error, and a video removed from the page keeps loading.
    for (const shown of this.tiles.querySelectorAll("[src]")) {
      shown.removeAttribute("src");
      shown.load?.();
    }
    this.urls.forEach((url) => URL.revokeObjectURL(url));
    this.urls = [];
    this.videos = [];
  }
}

// Sliders of ipywidgets have no accessible name on their handles: they get that of their field.
function nameSliders(panel) {
  for (const handle of panel.querySelectorAll(".thl-field .noUi-handle:not([aria-label])")) {
    const heading = handle.closest(".thl-field").querySelector(".thl-name");
    if (heading) handle.setAttribute("aria-label", heading.textContent.trim());
  }
}

function watchSliders(el) {
  const watcher = new MutationObserver(() => {
    const panel = el.closest(".thl-panel");
    if (panel) nameSliders(panel);
  });
  watcher.observe(document.body, { childList: true, subtree: true });
  return watcher;
}

function render({ model, el }) {
  const stage = new Stage(model, el);
  const watcher = watchSliders(el);
  const show = () => stage.show();
  model.on("change:clips", show);
  return () => {
    model.off("change:clips", show);
    watcher.disconnect();
    stage.release();
  };
}

export default { render };
