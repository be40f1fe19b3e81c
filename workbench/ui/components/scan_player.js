"use strict";
/* The scan player: the order tables of two schemes, drawn at any step on the canvas of the scan map. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.player = ({ el, send, css, focus }) => {
  const GROUPS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]; // Okabe-Ito, as in figures/theme.py
  const SCAN_SECONDS = 7; // one whole scan at normal speed
  const STRIP_CELL_PX = 18;
  const calm = () => window.matchMedia("(prefers-reduced-motion: reduce)").matches;

  /* Inverse of figures/scan.py: encode_order. */
  function decodeOrder(scheme) {
    const sequences = [];
    for (const item of scheme.sequences) {
      if (item.ids) sequences.push(Int32Array.from(item.ids));
      else if (item.reverse_of !== undefined) sequences.push(sequences[item.reverse_of].slice().reverse());
      else {
        const ids = new Int32Array(scheme.length);
        let id = item.first;
        let at = 0;
        ids[at++] = id;
        for (let r = 0; r < item.runs.length; r += 2) {
          for (let n = 0; n < item.runs[r + 1]; n++) ids[at++] = id += item.runs[r];
        }
        sequences.push(ids);
      }
    }
    return sequences;
  }

  class Player {
    constructor(panel) {
      this.panel = panel;
      this.scheme = 0;
      this.group = 0;
      this.speed = 1;
      this.playing = false;
      this.tabs = el("div", { class: "wb-segmented", role: "radiogroup", "aria-label": "Scheme drawn" });
      this.strip = el("canvas", { class: "wb-strip", role: "img", "aria-label": "Patches in reading order" });
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
        this.strip,
        el("div", { class: "wb-controls" }, back, this.play, on, this.slider, this.rate),
        this.label,
      );
      this.node.addEventListener("keydown", (event) => {
        if (event.key === " " && event.target.tagName !== "BUTTON") {
          event.preventDefault();
          this.toggle();
        }
      });
      this.strip.addEventListener("pointermove", (event) => {
        const step = this.stripStart() + Math.floor(event.offsetX / STRIP_CELL_PX);
        const point = this.centre(this.sequences[this.group][step]);
        if (point) send({ kind: "hover", ...point, source: this });
      });
      this.strip.addEventListener("pointerleave", () => send({ kind: "leave" }));
      this.image = new Image();
      this.image.onload = () => this.paintStrip();
    }

    update(spec) {
      const key = JSON.stringify([spec.schemes.map((s) => [s.label, s.height, s.width])]);
      const isNew = key !== this.key;
      this.key = key;
      this.schemes = spec.schemes;
      this.tables = this.schemes.map(() => null);
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
      const scheme = this.schemes[this.scheme];
      this.tables[this.scheme] ||= decodeOrder(scheme);
      this.sequences = this.tables[this.scheme];
      this.where = null;
      [...this.tabs.children].forEach((tab, i) => tab.setAttribute("aria-checked", String(i === this.scheme)));
      if (rewind || this.step === undefined) {
        this.playing = false;
        this.step = scheme.length;
      }
      this.group = Math.min(this.group, this.sequences.length - 1);
      this.chooser.replaceChildren(...this.sequences.map((_, k) => el("option", { value: k, text: `${k + 1}` })));
      this.slider.max = scheme.length;
      this.follow();
      this.changed();
    }

    /* The strip follows the group that holds the focus. */
    follow() {
      const now = focus();
      const isHere = now && now.stage === this.panel.payload.stage;
      const at = isHere && this.locate(now.y, now.x);
      if (at) this.group = at.group;
      this.changed();
    }

    locate(y, x) {
      const scheme = this.schemes[this.scheme];
      const id = y * scheme.width + x;
      if (!this.where) {
        this.where = new Map();
        this.sequences.forEach((ids, group) => ids.forEach((token, step) => {
          if (token >= 0 && !this.where.has(token)) this.where.set(token, { group, step });
        }));
      }
      return this.where.get(id) || null;
    }

    readout(point) {
      const { stride } = this.schemes[this.scheme];
      const at = this.locate(Math.floor(point.y / stride), Math.floor(point.x / stride));
      return at ? ` · group ${at.group + 1}, step ${at.step + 1}` : "";
    }

    centre(id) {
      if (id === undefined || id < 0) return null;
      const { width, stride } = this.schemes[this.scheme];
      return { y: (Math.floor(id / width) + 0.5) * stride, x: ((id % width) + 0.5) * stride };
    }

    toggle() {
      if (this.playing) return this.stop();
      const length = this.schemes[this.scheme].length;
      if (this.step >= length) this.step = 0;
      if (calm()) return this.seek(this.step + 1);
      this.playing = true;
      let last = performance.now();
      let exact = this.step;
      const tick = (now) => {
        if (!this.playing) return;
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
      this.step = Math.max(0, Math.min(this.schemes[this.scheme].length, step));
      this.changed();
    }

    changed() {
      const length = this.schemes[this.scheme].length;
      this.play.textContent = this.playing ? "❚❚" : "▶";
      this.play.setAttribute("aria-label", this.playing ? "Pause" : "Play");
      this.slider.value = this.step;
      this.chooser.value = this.group;
      const id = this.step > 0 ? this.sequences[this.group][this.step - 1] : undefined;
      const { width } = this.schemes[this.scheme];
      const what = id === undefined ? "" : id < 0 ? " · a pad" : ` · row ${Math.floor(id / width)}, column ${id % width}`;
      this.label.textContent = `step ${this.step.toLocaleString("en")} of ${length.toLocaleString("en")}${what}`;
      this.paintStrip();
      this.panel.overlays();
    }

    paint(g, sx, sy) {
      const { width, stride, length } = this.schemes[this.scheme];
      const count = this.sequences.length;
      const cell = Math.abs(sx(stride) - sx(0));
      const isShared = this.schemes[this.scheme].sequences.length > 1 && this.visitsTwice();
      const px = new Float64Array(length);
      const py = new Float64Array(length);
      for (let k = 0; k < count; k++) {
        const shift = isShared ? (k - (count - 1) / 2) * 0.17 * cell : 0;
        const ids = this.sequences[k];
        for (let t = 0; t < length; t++) {
          const id = ids[t];
          px[t] = id < 0 ? NaN : sx(((id % width) + 0.5) * stride) + shift;
          py[t] = id < 0 ? NaN : sy((Math.floor(id / width) + 0.5) * stride) + shift;
        }
        const colour = GROUPS[k % GROUPS.length];
        if (this.step < length) this.line(g, px, py, this.step, length, colour, 0.16, cell);
        this.line(g, px, py, 0, this.step, colour, 0.85, cell);
        const head = this.step > 0 && this.step < length ? this.step - 1 : -1;
        if (head >= 0 && !Number.isNaN(px[head])) {
          g.fillStyle = "#fff";
          g.strokeStyle = colour;
          g.lineWidth = 2;
          g.beginPath();
          g.arc(px[head], py[head], Math.max(3, Math.min(6, cell * 0.5)), 0, 2 * Math.PI);
          g.fill();
          g.stroke();
        }
      }
    }

    visitsTwice() {
      const { height, width, length } = this.schemes[this.scheme];
      return this.sequences.length * length > 1.5 * height * width;
    }

    /* Neighbouring reads are solid, jumps (more than the scheme's own spacing) thin. */
    line(g, px, py, from, to, colour, alpha, cell) {
      const spacing = this.spacing() * cell * 1.01 + 0.5;
      const jumps = new Path2D();
      const steps = new Path2D();
      for (let t = Math.max(1, from); t < to; t++) {
        if (Number.isNaN(px[t]) || Number.isNaN(px[t - 1])) continue;
        const isJump = Math.abs(px[t] - px[t - 1]) + Math.abs(py[t] - py[t - 1]) > spacing;
        const path = isJump ? jumps : steps;
        path.moveTo(px[t - 1], py[t - 1]);
        path.lineTo(px[t], py[t]);
      }
      g.strokeStyle = colour;
      g.lineCap = "round";
      g.globalAlpha = alpha;
      g.lineWidth = Math.max(0.9, Math.min(2, cell * 0.15));
      g.stroke(steps);
      g.globalAlpha = alpha * 0.2;
      g.lineWidth = 0.7;
      g.stroke(jumps);
      g.globalAlpha = alpha;
      g.fillStyle = colour;
      if (cell > 5) {
        for (let t = from; t < to; t++) {
          if (Number.isNaN(px[t])) continue;
          g.beginPath();
          g.arc(px[t], py[t], Math.max(1.2, cell * 0.13), 0, 2 * Math.PI);
          g.fill();
        }
      }
      g.globalAlpha = 1;
    }

    spacing() {
      const ids = this.sequences[0];
      const { width } = this.schemes[this.scheme];
      if (ids.length < 2 || ids[0] < 0 || ids[1] < 0) return 1;
      return Math.abs((ids[1] % width) - (ids[0] % width)) + Math.abs(Math.floor(ids[1] / width) - Math.floor(ids[0] / width)) || 1;
    }

    stripStart() {
      const shown = Math.floor(this.strip.clientWidth / STRIP_CELL_PX);
      const length = this.schemes[this.scheme].length;
      const at = this.step >= length ? 0 : this.step - 1;
      return Math.max(0, Math.min(length - shown, at - Math.floor(shown / 2)));
    }

    paintStrip() {
      const width = this.strip.clientWidth;
      if (!width || !this.image.complete || !this.image.naturalWidth || !this.sequences) return;
      const ratio = window.devicePixelRatio || 1;
      this.strip.width = width * ratio;
      this.strip.height = 26 * ratio;
      const g = this.strip.getContext("2d");
      g.setTransform(ratio, 0, 0, ratio, 0, 0);
      const start = this.stripStart();
      const scheme = this.schemes[this.scheme];
      const [h, w] = this.panel.payload.input;
      const scale = this.image.naturalWidth / w;
      const ids = this.sequences[this.group];
      for (let i = 0; i * STRIP_CELL_PX < width && start + i < ids.length; i++) {
        const id = ids[start + i];
        const x = i * STRIP_CELL_PX;
        const isRead = start + i < this.step;
        g.globalAlpha = isRead ? 1 : 0.3;
        if (id < 0) {
          g.fillStyle = css("--wb-line");
          g.fillRect(x, 0, STRIP_CELL_PX - 1, 18);
        } else {
          const s = scheme.stride * scale;
          const sx = (id % scheme.width) * s;
          const sy = Math.floor(id / scheme.width) * s;
          const sh = Math.min(s, this.image.naturalHeight - sy, (h * scale) - sy);
          g.drawImage(this.image, sx, sy, s, Math.max(1, sh), x, 0, STRIP_CELL_PX - 1, 18);
        }
        g.fillStyle = GROUPS[this.group % GROUPS.length];
        g.fillRect(x, 20, STRIP_CELL_PX - 1, start + i === this.step - 1 ? 6 : 3);
      }
      g.globalAlpha = 1;
    }
  }

  return { Player };
};
