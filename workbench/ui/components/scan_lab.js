"use strict";
/* The scan lab: two or three schemes side by side over the photo, all moved by one transport. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.lab = ({ Panel, MapView, Order, PathPainter, Strip, el, send, focus }) => {
  const SCAN_SECONDS = 7; // one whole scan at normal speed
  const LEGEND_MS = 120; // numbers that change faster cannot be read
  const SPEEDS = [0.25, 1, 4];
  const MAP_PX = 288; // height of a map, by the panel's height
  const WIDE = 1.2; // width by height of a photo beside which three legends find no room
  const FIRST_SHARE = 0.3; // of the scan is drawn at first: what is read and what is to come
  const MODES = [
    { key: "share", text: "same share", tip: "All schemes end together: each at the same share of its own length" },
    { key: "step", text: "same step", tip: "All schemes take one step at a time: a shorter sequence ends sooner, as it does on the device" },
  ];
  const calm = () => window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const count = (n) => n.toLocaleString("en");

  /* One scheme: its map, the groups with what each reads now, and the strip. */
  class Column {
    constructor(lab) {
      this.lab = lab;
      this.group = 0;
      this.map = new MapView(lab);
      this.map.painter = this;
      this.name = el("b");
      this.facts = el("span", { class: "wb-muted wb-labfacts" });
      this.badge = el("span", { class: "wb-badge" });
      this.legend = el("div", { class: "wb-lablegend", role: "radiogroup", "aria-label": "Group read in the strip" });
      this.canvas = el("canvas", { class: "wb-strip wb-labstrip", role: "img" });
      this.strip = new Strip(this.canvas, 20);
      this.numbers = el("div", { class: "wb-labnumbers" });
      this.canvas.addEventListener("pointermove", (event) => {
        const point = this.order.centre(this.order.tables[this.group][this.strip.entryAt(event.offsetX)]);
        if (point) send({ kind: "hover", ...point, source: this });
      });
      this.canvas.addEventListener("pointerleave", () => send({ kind: "leave" }));
      this.canvas.addEventListener("click", (event) => {
        const entry = this.strip.entryAt(event.offsetX);
        if (entry < this.order.tables[0].length) lab.seekScheme(this, entry * this.order.every + 1);
      });
      this.node = el("div", { class: "wb-labcolumn" },
        el("div", { class: "wb-labhead" }, this.name, this.facts, this.badge),
        el("div", { class: "wb-labrow" }, this.map.node, el("div", { class: "wb-labside" }, this.legend, this.numbers)),
        this.canvas);
    }

    update(scheme, payload) {
      const key = [scheme.id, scheme.height, scheme.width, scheme.stride].join();
      if (key !== this.key) {
        this.key = key;
        this.painter = new PathPainter(new Order(scheme));
        this.order = this.painter.order;
        this.group = 0;
      }
      const { order } = this;
      this.name.className = `wb-tone-${scheme.tone}`;
      this.name.textContent = scheme.label;
      this.facts.textContent = this.facts.title = scheme.facts;
      this.badge.className = `wb-badge wb-badge-${scheme.badge.tone}`;
      this.badge.textContent = scheme.badge.text;
      this.badge.title = scheme.badge.tip || scheme.badge.text;
      this.canvas.setAttribute("aria-label", `${scheme.label}: patches in reading order`);
      const [h, w] = payload.input;
      this.map.node.style.flexBasis = `${Math.round((MAP_PX * w) / h)}px`;
      this.numbers.replaceChildren(...scheme.numbers.map(([text, value]) =>
        el("div", { class: "wb-labnumber" }, el("span", { class: "wb-muted", text }), el("span", { text: value }))));
      this.rows = order.tables.map((_, k) => {
        const swatch = el("i", { class: "wb-swatch" });
        swatch.style.borderTopColor = order.styles[k].colour;
        swatch.style.borderTopStyle = order.styles[k].dash.length ? "dashed" : "solid";
        const now = el("span", { class: "wb-now" });
        const row = el("button", {
          type: "button", role: "radio", class: "wb-group", title: `Group ${order.number(k)} uses parameter set ${scheme.parameter_set[k]}`,
          onclick: () => { this.group = k; this.lab.changed(); },
        }, swatch, el("span", { text: `${order.number(k)}` }), el("span", { class: "wb-muted", text: `set ${scheme.parameter_set[k]}` }), now);
        return { row, now };
      });
      this.thin = el("p", { class: "wb-note" });
      const head = el("div", { class: "wb-group wb-muted wb-grouphead", "aria-hidden": "true" },
        el("span", { text: "group" }), el("span", { class: "wb-now", text: "reads now" }));
      this.legend.replaceChildren(head, ...this.rows.map((r) => r.row), this.thin);
      this.strip.set(order, this.lab.photo, payload.input);
      this.map.update(scheme.map);
      this.follow();
    }

    /* The strip follows the group that holds the focus. */
    follow() {
      const now = focus();
      if (!now || now.stage !== this.lab.payload.stage) return;
      const [at] = this.order.visits(now.y, now.x);
      if (at) this.group = at.group;
    }

    get step() {
      return this.lab.stepOf(this);
    }

    paint(g, sx, sy, size) {
      this.painter.paint(g, sx, sy, this.step, size);
    }

    readout(point) {
      const { stride, every } = this.order;
      const found = this.order.visits(Math.floor(point.y / stride), Math.floor(point.x / stride));
      if (!found.length) return every > 1 ? ` · between the steps sent` : " · not read";
      const text = found.slice(0, 4).map((v) => `${this.order.number(v.group)}: ${count(v.step + 1)}`).join(", ");
      return ` · step in group ${text}${found.length > 4 ? ", …" : ""}`;
    }

    frame() {
      this.map.overlay();
      this.strip.paint(this.group, this.step);
    }

    words() {
      const { step, order } = this;
      this.rows.forEach(({ row, now }, k) => {
        const id = order.at(k, step);
        row.setAttribute("aria-checked", String(k === this.group));
        now.textContent = id === undefined ? "" : id < 0 ? "pad" : `${Math.floor(id / order.width)}, ${id % order.width}`;
      });
      const drawn = Math.max(order.every, (this.painter.thin || 1) * order.every);
      this.thin.textContent = drawn > 1 ? `drawn: every ${drawn}${drawn === 2 ? "nd" : drawn === 3 ? "rd" : "th"} step` : "";
      this.thin.hidden = drawn <= 1;
    }
  }

  class ScanLab extends Panel {
    constructor(element, props, trigger) {
      super(element, props, trigger);
      this.columns = [];
      this.speed = 1;
      this.mode = "share";
      this.playing = false;
      this.position = null; // steps of the longest scheme; null until the first picture
      this.frames = 0;
      this.photo = new Image();
      this.photo.onload = () => this.columns.forEach((c) => c.order && c.strip.paint(c.group, c.step));
      this.row = el("div", { class: "wb-labcolumns" });
      this.transport = this.buildTransport();
      this.body.classList.add("wb-labbody");
      document.addEventListener("keydown", (this.keys = (event) => this.key(event)));
    }

    buildTransport() {
      const button = (text, label, onclick) => el("button", { class: "wb-button", type: "button", text, "aria-label": label, title: label, onclick });
      this.play = button("▶", "Play", () => this.toggle());
      this.rate = button("1×", "Playback speed", () => {
        this.speed = SPEEDS[(SPEEDS.indexOf(this.speed) + 1) % SPEEDS.length];
        this.rate.textContent = `${this.speed === 0.25 ? "¼" : this.speed}×`;
      });
      this.slider = el("input", {
        type: "range", min: 0, step: 1, "aria-label": "Position in the scan",
        oninput: () => this.seek(Number(this.slider.value)),
      });
      this.modes = el("div", { class: "wb-segmented wb-labmodes", role: "radiogroup", "aria-label": "How the schemes are synchronised" },
        ...MODES.map((mode) => el("button", {
          type: "button", role: "radio", text: mode.text, title: mode.tip, "data-mode": mode.key,
          onclick: () => { this.mode = mode.key; this.changed(); },
        })));
      this.label = el("output", { class: "wb-step wb-lablabel" });
      return el("div", { class: "wb-controls wb-transport" },
        button("‹", "One step back", () => this.seek(this.position - 1)), this.play,
        button("›", "One step on", () => this.seek(this.position + 1)),
        this.slider, this.rate, this.modes, this.label);
    }

    build() {
      const { schemes, photo, input } = this.payload;
      if (this.photo.src !== photo) this.photo.src = photo;
      while (this.columns.length > schemes.length) this.columns.pop().map.dispose();
      while (this.columns.length < schemes.length) this.columns.push(new Column(this));
      this.row.replaceChildren(...this.columns.map((c) => c.node));
      this.row.style.setProperty("--wb-columns", schemes.length);
      this.row.classList.toggle("wb-labthree", schemes.length > 2);
      this.row.classList.toggle("wb-labwide", schemes.length > 2 && input[1] > WIDE * input[0]);
      this.body.replaceChildren(this.row, this.transport);
      const before = this.columns.map((c) => c.key).join("|");
      this.columns.forEach((column, i) => column.update(schemes[i], this.payload));
      this.longest = Math.max(...this.columns.map((c) => c.order.length));
      if (before !== this.columns.map((c) => c.key).join("|") || this.position === null) {
        this.playing = false;
        this.position = Math.round(FIRST_SHARE * this.longest);
      }
      this.slider.max = this.longest;
      this.modes.hidden = this.columns.every((c) => c.order.length === this.longest);
      this.changed();
    }

    buildEmpty(spec) {
      this.playing = false;
      for (const column of this.columns.splice(0)) column.map.dispose();
      super.buildEmpty(spec);
    }

    /* 1-based step of a column at the transport's position; 0 before the first, its length at the end. */
    stepOf({ order }) {
      if (this.mode === "step") return Math.min(order.length, this.position);
      return Math.round((this.position * order.length) / this.longest);
    }

    /* The transport goes where `column` is at `step`. */
    seekScheme(column, step) {
      this.seek(this.mode === "step" ? step : Math.round((step * this.longest) / column.order.length));
    }

    seek(position) {
      this.playing = false;
      this.position = Math.max(0, Math.min(this.longest, Math.round(position)));
      this.changed();
    }

    toggle() {
      this.playing = !this.playing;
      if (!this.playing) return this.changed();
      if (this.position >= this.longest) this.position = 0;
      if (calm()) return this.seek(this.position + 1);
      let last = performance.now();
      let exact = this.position;
      const tick = (now) => {
        if (!this.playing) return;
        if (!this.row.clientWidth) return this.seek(this.position); // another tab was opened
        exact += (Math.max(0, now - last) / 1000) * this.speed * (this.longest / SCAN_SECONDS);
        last = now;
        this.position = Math.min(this.longest, Math.floor(exact));
        this.frames += 1;
        if (this.position >= this.longest) this.playing = false;
        this.changed();
        if (this.playing) requestAnimationFrame(tick);
      };
      requestAnimationFrame(tick);
      this.changed();
    }

    changed() {
      if (!this.columns.length) return;
      for (const column of this.columns) column.frame();
      this.slider.value = this.position;
      const now = performance.now();
      if (this.playing && now - (this.worded || 0) < LEGEND_MS) return;
      this.worded = now;
      this.play.textContent = this.playing ? "❚❚" : "▶";
      this.play.setAttribute("aria-label", this.playing ? "Pause" : "Play");
      for (const node of this.modes.children) node.setAttribute("aria-checked", String(node.dataset.mode === this.mode));
      for (const column of this.columns) column.words();
      const steps = this.columns.map((c) => `${count(c.step)} of ${count(c.order.length)}`);
      this.label.textContent = `step ${[...new Set(steps)].join(" · ")}`;
      this.label.title = this.columns.map((c, i) => `${c.name.textContent}: step ${steps[i]}`).join("; ");
    }

    /* Space, arrows, Home and End; never while a field has the keyboard, a map is focused or the tab is hidden. */
    key(event) {
      const { target } = event;
      const isHere = target === document.body || this.node.contains(target);
      if (!isHere || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
      if (!this.columns.length || !this.row.clientWidth || document.querySelector("dialog[open]")) return;
      if (event.key === " ") {
        if (target.tagName === "BUTTON") return;
        event.preventDefault();
        return this.toggle();
      }
      const stride = event.shiftKey ? Math.max(1, Math.round(this.longest / 10)) : 1;
      const next = {
        ArrowLeft: this.position - stride, ArrowRight: this.position + stride, Home: 0, End: this.longest,
      }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      this.seek(next);
    }

    overlays() {
      for (const { map } of this.columns) map.overlay();
    }

    hovered(detail) {
      const point = detail.kind === "hover" ? detail : null;
      for (const { map } of this.columns) {
        map.overlay();
        map.readout(point);
      }
    }

    focused() {
      if (this.payload.empty) return;
      for (const column of this.columns) column.follow();
      this.changed();
    }

    themeChanged() {
      for (const { map } of this.columns) map.draw();
      this.changed();
    }

    on(detail) {
      super.on(detail);
      if (detail.kind !== "range") return;
      for (const { map } of this.columns) if (map !== detail.source) map.range(detail.range);
    }

    state() {
      if (!this.payload) return null;
      return {
        step: this.position, playing: this.playing, frames: this.frames, mode: this.mode, length: this.longest,
        schemes: this.columns.map((c) => ({
          label: c.name.textContent, step: c.step, length: c.order.length, group: c.order.number(c.group),
          tokens: c.order.tables.map((_, k) => c.order.at(k, c.step) ?? null),
        })),
      };
    }

    dispose() {
      super.dispose();
      this.playing = false;
      document.removeEventListener("keydown", this.keys);
      for (const { map } of this.columns) map.dispose();
    }
  }

  return { ScanLab };
};
