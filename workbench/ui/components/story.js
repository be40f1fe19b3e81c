"use strict";
/* The seed paper's figure as a guided view: N patches, the full scan reads 4N tokens, the atrous scan reads N. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.story = ({ Panel, Order, PathPainter, el, css }) => {
  const RUN_SECONDS = 3.2; // one step's drawing
  const REST_MS = 2200; // time to read before autoplay goes on
  const TAPE_CELLS = 16; // patches in one line of a tape
  const GAP_PX = 6;
  const UNDER_PX = 18; // the line under the tapes
  const calm = () => window.matchMedia("(prefers-reduced-motion: reduce)").matches;

  class Story extends Panel {
    constructor(element, props, trigger) {
      super(element, props, trigger);
      this.step = 0;
      this.done = 1; // share of the current step that is drawn
      this.photo = new Image();
      this.photo.onload = () => this.paint();
      this.canvas = el("canvas", { class: "wb-storycanvas", role: "img" });
      this.observer = new ResizeObserver(() => this.paint());
      this.observer.observe(this.canvas);
      const button = (text, label, onclick) => el("button", { class: "wb-button", type: "button", text, "aria-label": label, onclick });
      this.back = button("‹", "Previous step", () => this.go(this.step - 1));
      this.next = button("›", "Next step", () => this.go(this.step + 1));
      this.auto = button("▶", "Play all steps", () => this.autoplay());
      this.dots = el("div", { class: "wb-storysteps", role: "radiogroup", "aria-label": "Step of the story" });
      this.numbers = el("div", { class: "wb-storynumbers" });
      this.controls = el("div", { class: "wb-controls wb-storycontrols" }, this.back, this.auto, this.next, this.dots);
      this.body.classList.add("wb-storybody");
    }

    build() {
      const p = this.payload;
      if (this.photo.src !== p.photo) this.photo.src = p.photo;
      this.painters = p.schemes.map((scheme) => new PathPainter(new Order(scheme)));
      this.dots.replaceChildren(...p.steps.map((s, i) => el("button", {
        type: "button", role: "radio", class: "wb-storystep", text: s.title, onclick: () => this.go(i),
      })));
      const most = Math.max(...p.steps.map((s) => s.value));
      this.numbers.replaceChildren(el("span", { class: "wb-muted wb-storycaption", text: p.caption }), ...p.steps.map((s) => {
        const fill = el("i", { class: s.tone ? `wb-fill-${s.tone}` : "wb-fill-plain" });
        fill.style.width = `${(100 * s.value) / most}%`;
        return el("div", { class: "wb-storybar" }, el("span", { text: s.short }), el("span", { class: "wb-sharetrack" }, fill),
          el("b", { class: "wb-number", text: s.value.toLocaleString("en") }));
      }));
      this.body.replaceChildren(this.canvas, this.numbers, this.controls);
      this.show();
    }

    buildEmpty(spec) {
      this.stop();
      super.buildEmpty(spec);
    }

    stop() {
      clearTimeout(this.timer);
      this.isAuto = false;
      this.running = null;
    }

    go(step) {
      const wasAuto = this.isAuto;
      if (!wasAuto) this.stop();
      this.step = Math.max(0, Math.min(this.payload.steps.length - 1, step));
      this.run();
    }

    autoplay() {
      const wasAuto = this.isAuto;
      this.stop();
      if (wasAuto) return this.show();
      this.isAuto = true;
      if (this.step >= this.payload.steps.length - 1) this.step = 0;
      this.run();
    }

    run() {
      clearTimeout(this.timer);
      const started = performance.now();
      const run = (this.running = {});
      const tick = (now) => {
        if (this.running !== run || !this.node.isConnected) return;
        if (!this.canvas.clientWidth) { // another tab was opened
          this.stop();
          this.done = 1;
          return;
        }
        this.done = calm() ? 1 : Math.max(0, Math.min(1, (now - started) / (1000 * RUN_SECONDS)));
        this.paint();
        if (this.done < 1) requestAnimationFrame(tick);
        else this.rest();
      };
      requestAnimationFrame(tick);
      this.show();
    }

    rest() {
      if (!this.isAuto) return;
      const isLast = this.step === this.payload.steps.length - 1;
      if (isLast) {
        this.stop();
        this.show();
      } else this.timer = setTimeout(() => this.go(this.step + 1), REST_MS * (calm() ? 2 : 1));
    }

    show() {
      const { steps } = this.payload;
      this.sentence.textContent = this.sentence.title = steps[this.step].text;
      this.canvas.setAttribute("aria-label", `${steps[this.step].title}. ${steps[this.step].text}`);
      [...this.dots.children].forEach((dot, i) => dot.setAttribute("aria-checked", String(i === this.step)));
      [...this.numbers.querySelectorAll(".wb-storybar")].forEach((bar, i) => bar.classList.toggle("wb-current", i === this.step));
      this.auto.textContent = this.isAuto ? "❚❚" : "▶";
      this.auto.setAttribute("aria-label", this.isAuto ? "Stop" : "Play all steps");
      this.back.disabled = this.step === 0;
      this.next.disabled = this.step === steps.length - 1;
      this.paint();
    }

    paint() {
      const { clientWidth: width, clientHeight: height } = this.canvas;
      if (!width || !this.painters || !this.photo.complete || !this.photo.naturalWidth) return;
      const ratio = window.devicePixelRatio || 1;
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
      const g = this.canvas.getContext("2d");
      g.setTransform(ratio, 0, 0, ratio, 0, 0);
      const spec = this.payload.steps[this.step];
      const { order } = this.painters[spec.scheme];
      const [h, w] = [order.height * order.stride, order.width * order.stride];
      const scale = Math.min(height / h, (0.44 * width) / w);
      g.globalAlpha = spec.is_grid ? 1 : 0.62;
      g.drawImage(this.photo, 0, 0, w * scale, h * scale);
      g.globalAlpha = 1;
      this.grid(g, order, scale);
      const read = Math.round(this.done * (spec.is_grid ? order.width * order.height : order.length));
      if (!spec.is_grid) {
        const at = (v) => v * scale;
        this.painters[spec.scheme].paint(g, at, at, read, { width: w * scale, height: h * scale, ratio });
      }
      this.tapes(g, spec, order, read, { left: w * scale + 22, width, height, scale });
    }

    grid(g, { height, width, stride }, scale) {
      const cell = stride * scale;
      g.strokeStyle = "rgba(255, 255, 255, .7)";
      g.lineWidth = 1;
      g.beginPath();
      for (let i = 1; i < width; i++) {
        g.moveTo(i * cell, 0);
        g.lineTo(i * cell, height * cell);
      }
      for (let i = 1; i < height; i++) {
        g.moveTo(0, i * cell);
        g.lineTo(width * cell, i * cell);
      }
      g.stroke();
    }

    /* What is read, one patch beside the other, in lines of equal length: the area is the work. */
    tapes(g, spec, order, read, { left, width, height, scale }) {
      const all = Array.from({ length: order.width * order.height }, (_, i) => i);
      const tapes = spec.is_grid ? [all] : order.tables;
      const tallest = this.painters.reduce((most, { order: o }) =>
        Math.max(most, o.tables.length * Math.ceil(o.length / TAPE_CELLS)), 0);
      const gaps = GAP_PX * Math.max(...this.painters.map((p) => p.order.tables.length));
      const label = 16;
      const cell = Math.floor(Math.min((height - gaps - UNDER_PX) / tallest, (width - left - label) / TAPE_CELLS));
      let y = 0;
      let drawn = 0;
      g.font = "11px system-ui, sans-serif";
      g.textBaseline = "middle";
      tapes.forEach((ids, k) => {
        const lines = Math.ceil(ids.length / TAPE_CELLS);
        g.fillStyle = spec.is_grid ? css("--wb-muted") : order.styles[k].colour;
        g.fillRect(left, y, 3, lines * cell - 1);
        if (!spec.is_grid) g.fillText(`${k + 1}`, left + 6, y + Math.min(lines * cell, 14) / 2);
        for (let t = 0; t < ids.length; t++) {
          const x = left + label + (t % TAPE_CELLS) * cell;
          const top = y + Math.floor(t / TAPE_CELLS) * cell;
          g.globalAlpha = t < read ? 1 : 0.16;
          this.patch(g, ids[t], order, x, top, cell - 1);
        }
        g.globalAlpha = 1;
        y += lines * cell + GAP_PX;
        drawn += lines;
      });
      // What the longest tapes read beyond these, as empty cells: the difference is the point.
      g.fillStyle = css("--wb-soft");
      for (let line = 0; line < tallest - drawn; line++) {
        for (let i = 0; i < TAPE_CELLS; i++) g.fillRect(left + label + i * cell, y + line * cell, cell - 1, cell - 1);
      }
      g.fillStyle = css("--wb-muted");
      g.font = "12px system-ui, sans-serif";
      g.fillText(spec.under, left + label, tallest * cell + gaps + UNDER_PX / 2);
    }

    patch(g, id, order, x, y, side) {
      if (id < 0) {
        g.strokeStyle = css("--wb-muted");
        g.setLineDash([2, 2]);
        g.strokeRect(x + 0.5, y + 0.5, side - 1, side - 1);
        g.setLineDash([]);
        return;
      }
      const w = this.photo.naturalWidth / order.width;
      const h = this.photo.naturalHeight / order.height;
      g.drawImage(this.photo, (id % order.width) * w, Math.floor(id / order.width) * h, w, h, x, y, side, side);
    }

    themeChanged() {
      if (this.painters) this.paint();
    }

    dispose() {
      super.dispose();
      this.stop();
      this.observer.disconnect();
    }
  }

  return { Story };
};
