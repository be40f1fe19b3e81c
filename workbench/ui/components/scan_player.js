"use strict";
/* The scan player: the order tables of two schemes, drawn at any step on the canvas of the scan map. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.player = ({ el, send, focus, Order, PathPainter, Strip }) => {
  const SCAN_SECONDS = 7; // one whole scan at normal speed
  const calm = () => window.matchMedia("(prefers-reduced-motion: reduce)").matches;

  class Player {
    constructor(panel) {
      this.panel = panel;
      this.scheme = 0;
      this.group = 0;
      this.speed = 1;
      this.playing = false;
      this.tabs = el("div", { class: "wb-segmented", role: "radiogroup", "aria-label": "Scheme drawn" });
      this.canvas = el("canvas", { class: "wb-strip", role: "img", "aria-label": "Patches in reading order" });
      this.strip = new Strip(this.canvas);
      this.chooser = el("select", {
        class: "wb-select", "aria-label": "Group read in the strip",
        onchange: () => { this.group = Number(this.chooser.value); this.changed(); },
      });
      this.play = el("button", { class: "wb-button", type: "button", onclick: () => this.toggle() });
      const back = el("button", {
        class: "wb-button", type: "button", "aria-label": "One step back", text: "‹",
        onclick: () => this.seek(this.step - 1),
      });
      const on = el("button", {
        class: "wb-button", type: "button", "aria-label": "One step on", text: "›",
        onclick: () => this.seek(this.step + 1),
      });
      this.rate = el("button", {
        class: "wb-button wb-rate", type: "button", title: "Playback speed", text: "1×",
        onclick: () => {
          this.speed = { 0.25: 1, 1: 4, 4: 0.25 }[this.speed];
          this.rate.textContent = `${this.speed === 0.25 ? "¼" : this.speed}×`;
        },
      });
      this.slider = el("input", {
        type: "range", min: 0, step: 1, "aria-label": "Step of the scan",
        oninput: () => this.seek(Number(this.slider.value)),
      });
      this.label = el("output", { class: "wb-step" });
      this.node = el(
        "div", { class: "wb-player" },
        el("div", { class: "wb-striphead" }, el("span", { text: "what group" }), this.chooser,
          el("span", { text: "reads, in order" })),
        this.canvas,
        el("div", { class: "wb-controls" }, back, this.play, on, this.slider, this.rate),
        this.label,
      );
      this.node.addEventListener("keydown", (event) => {
        if (event.key === " " && event.target.tagName !== "BUTTON") {
          event.preventDefault();
          this.toggle();
        }
      });
      this.canvas.addEventListener("pointermove", (event) => {
        const point = this.order.centre(this.order.tables[this.group][this.strip.entryAt(event.offsetX)]);
        if (point) send({ kind: "hover", ...point, source: this });
      });
      this.canvas.addEventListener("pointerleave", () => send({ kind: "leave" }));
      this.image = new Image();
      this.image.onload = () => this.paintStrip();
    }

    update(spec) {
      const key = JSON.stringify(spec.schemes.map((s) => [s.id, s.height, s.width, s.stride]));
      const isNew = key !== this.key;
      this.key = key;
      this.schemes = spec.schemes;
      if (isNew) this.painters = this.schemes.map(() => null); // decoded when first shown
      this.scheme = Math.min(this.scheme, this.schemes.length - 1);
      this.image.src = spec.photo;
      this.tabs.replaceChildren(...this.schemes.map((scheme, i) =>
        el("button", {
          type: "button", role: "radio", class: `wb-tone-${scheme.tone}`, text: scheme.label,
          onclick: () => { this.scheme = i; this.load(true); },
        })));
      this.load(isNew);
    }

    load(rewind) {
      this.painter = this.painters[this.scheme] ||= new PathPainter(new Order(this.schemes[this.scheme]));
      this.order = this.painter.order;
      this.strip.set(this.order, this.image, this.panel.payload.input);
      [...this.tabs.children].forEach((tab, i) => tab.setAttribute("aria-checked", String(i === this.scheme)));
      if (rewind || this.step === undefined) {
        this.playing = false;
        this.step = this.order.length;
      }
      this.group = Math.min(this.group, this.order.tables.length - 1);
      this.chooser.replaceChildren(...this.order.tables.map((_, k) => el("option", { value: k, text: `${this.order.number(k)}` })));
      this.slider.max = this.order.length;
      this.follow();
    }

    /* The strip follows the group that holds the focus. */
    follow() {
      const now = focus();
      const isHere = now && now.stage === this.panel.payload.stage;
      const [at] = isHere ? this.order.visits(now.y, now.x) : [];
      if (at) this.group = at.group;
      this.changed();
    }

    readout(point) {
      const { stride } = this.order;
      const [at] = this.order.visits(Math.floor(point.y / stride), Math.floor(point.x / stride));
      return at ? ` · group ${this.order.number(at.group)}, step ${at.step + 1}` : "";
    }

    toggle() {
      if (this.playing) return this.stop();
      const { length } = this.order;
      if (this.step >= length) this.step = 0;
      if (calm()) return this.seek(this.step + 1);
      this.playing = true;
      let last = performance.now();
      let exact = this.step;
      const tick = (now) => {
        if (!this.playing) return;
        if (!this.canvas.clientWidth) return this.stop(); // another tab was opened
        exact += ((now - last) / 1000) * this.speed * (length / SCAN_SECONDS);
        last = now;
        this.step = Math.min(length, Math.floor(exact));
        if (this.step >= length) this.playing = false;
        this.changed();
        if (this.playing) requestAnimationFrame(tick);
      };
      requestAnimationFrame(tick);
      this.changed();
    }

    stop() {
      this.playing = false;
      this.changed();
    }

    seek(step) {
      this.playing = false;
      this.step = Math.max(0, Math.min(this.order.length, step));
      this.changed();
    }

    changed() {
      const { length } = this.order;
      this.play.textContent = this.playing ? "❚❚" : "▶";
      this.play.setAttribute("aria-label", this.playing ? "Pause" : "Play");
      this.slider.value = this.step;
      this.chooser.value = this.group;
      const id = this.order.at(this.group, this.step);
      const { width } = this.order;
      const what = id === undefined ? "" : id < 0 ? " · a pad" : ` · row ${Math.floor(id / width)}, column ${id % width}`;
      this.label.textContent = `step ${this.step.toLocaleString("en")} of ${length.toLocaleString("en")}${what}`;
      this.paintStrip();
      this.panel.overlays();
    }

    paint(g, sx, sy, size) {
      this.painter.paint(g, sx, sy, this.step, size);
    }

    paintStrip() {
      this.strip.paint(this.group, this.step);
    }
  }

  return { Player };
};
