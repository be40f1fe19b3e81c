"use strict";
/* The timeline of a trace: events in lanes on one canvas, memory below it on the same axis of time.
 *
 * Wheel (after a click into it, or with Ctrl), + and - zoom; dragging and arrows move; dragging the ruler or with Shift
 * zooms to that stretch; 0 shows all; a click or Enter on a search selects. Nothing here asks the server. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.timeline = ({ ProfilerPanel, el, css, themed, legend, searchBox, time, bytes, noteNode }) => {
  const GUTTER = 148;
  const RULER = 18;
  const ROW = 15;
  const LANE_GAP = 7;
  const LEAST_SPAN = 50; // ns: no trace is finer
  const ARRAYS = { f8: Float64Array, u4: Uint32Array, u2: Uint16Array };

  function unpack(text, type) {
    const raw = atob(text);
    const out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i += 1) out[i] = raw.charCodeAt(i);
    return new ARRAYS[type](out.buffer);
  }

  /* Rows of rectangles: (lane, depth) -> indices of its events by start. */
  function layOut(events, lanes) {
    const rows = new Map();
    const deepest = new Array(lanes.length).fill(0);
    for (let i = 0; i < events.n; i += 1) {
      const key = events.lane[i] * 65536 + events.depth[i];
      if (!rows.has(key)) rows.set(key, { lane: events.lane[i], depth: events.depth[i], ids: [] });
      rows.get(key).ids.push(i);
      deepest[events.lane[i]] = Math.max(deepest[events.lane[i]], events.depth[i]);
    }
    let y = 0;
    const tops = deepest.map((depth) => {
      const top = y;
      y += (depth + 1) * ROW + LANE_GAP;
      return top;
    });
    for (const row of rows.values()) {
      row.ids.sort((a, b) => events.start[a] - events.start[b]);
      row.y = tops[row.lane] + row.depth * ROW;
    }
    return { rows: [...rows.values()], tops, height: y };
  }

  /* First of a row's events that ends after `t`. */
  function firstAfter(ids, events, t) {
    let [low, high] = [0, ids.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (events.start[ids[middle]] + events.duration[ids[middle]] > t) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /* 1, 2 or 5 times a power of ten, about a fifth of the span. */
  function tickStep(span) {
    const power = 10 ** Math.floor(Math.log10(span / 5));
    return [1, 2, 5, 10].map((m) => m * power).find((step) => span / step <= 7);
  }

  function isLight(hex) {
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return 0.299 * r + 0.587 * g + 0.114 * b > 140;
  }

  class TimelineLab extends ProfilerPanel {
    constructor(element, props, trigger) {
      super(element, props, trigger);
      this.device = 0;
      this.selected = -1;
      this.matches = [];
      this.canvas = el("canvas", {
        class: "wb-timecanvas", tabindex: "0", role: "img", "aria-label": "Events over time. Plus and minus zoom, arrows move, 0 shows all, n and p step through what was found.",
        onpointerdown: (event) => this.down(event), onpointermove: (event) => this.move(event), onpointerup: (event) => this.up(event),
        onpointerleave: () => { if (!this.drag) this.point(null); }, ondblclick: (event) => this.zoomTo(this.hit(event)), onkeydown: (event) => this.key(event),
      });
      this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
      this.memory = el("canvas", { class: "wb-memcanvas", role: "img", onpointermove: (event) => this.pointAt(event), onpointerleave: () => this.point(null) });
      this.tip = el("div", { class: "wb-tip wb-timetip" });
      this.tip.hidden = true;
      this.detail = el("p", { class: "wb-timedetail", role: "status" });
      this.found = el("span", { class: "wb-muted wb-count", role: "status" });
      this.search = searchBox("Search events", (text) => this.find(text));
      this.search.addEventListener("keydown", (event) => { if (event.key === "Enter") this.nextMatch(event.shiftKey ? -1 : 1); });
      this.observer = new ResizeObserver(() => this.paint());
      this.observer.observe(this.canvas);
    }

    build() {
      const p = this.payload;
      this.body.classList.add("wb-profbody");
      if (p.events.start !== this.source) this.load(p); // the same events keep zoom, search and selection
      const button = (text, tip, onclick) => el("button", { type: "button", class: "wb-button", text, title: tip, "aria-label": tip, onclick });
      const top = el("div", { class: "wb-profbar-top" }, this.search, button("‹", "Previous event found", () => this.nextMatch(-1)), button("›", "Next event found", () => this.nextMatch(1)),
        this.found, el("span", { class: "wb-timelegend" }, ...legend(p.legend)),
        el("span", { class: "wb-zooms" }, button("−", "Zoom out", () => this.zoom(2)), button("+", "Zoom in", () => this.zoom(0.5)), button("all", "Show the whole trace", () => this.range(0, this.span))));
      const frame = el("div", { class: "wb-timeframe" }, this.canvas, this.tip);
      frame.style.height = `${Math.max(110, Math.min(290, this.plan.height + RULER + 2))}px`;
      this.body.replaceChildren(...[top, frame, ...this.memoryNodes(p), this.detail, this.links(p), noteNode(p.notes)].filter(Boolean));
      this.say();
      this.paint();
    }

    load(p) {
      const { events } = p;
      this.source = events.start;
      const name = events.wide_names ? "u4" : "u2";
      this.events = {
        n: events.n, names: events.names, categories: events.categories, colours: events.colours, start: unpack(events.start, "f8"), duration: unpack(events.duration, "f8"),
        lane: unpack(events.lane, "u2"), depth: unpack(events.depth, "u2"), name: unpack(events.name, name), category: unpack(events.category, "u2"),
      };
      this.lanes = p.lanes;
      this.curves = p.memory.map((m) => ({ ...m, time: unpack(m.time, "f8"), bytes: unpack(m.bytes, "f8") }));
      this.device = Math.min(this.device, Math.max(0, this.curves.length - 1));
      this.plan = layOut(this.events, this.lanes);
      let end = p.span_ns;
      for (let i = 0; i < events.n; i += 1) end = Math.max(end, this.events.start[i] + this.events.duration[i]);
      this.span = Math.max(LEAST_SPAN, end);
      [this.from, this.to, this.scroll, this.selected, this.cursor] = [0, this.span, 0, -1, null];
      this.find(this.search.value);
    }

    memoryNodes(p) {
      if (!p.memory.length) return [];
      const m = this.curves[this.device];
      const choose = el("select", { class: "wb-select", "aria-label": "Device whose memory is drawn", onchange: (event) => { this.device = Number(event.target.value); this.build(); } },
        ...p.memory.map((curve, i) => el("option", { value: String(i), text: curve.device, selected: i === this.device })));
      this.memory.setAttribute("aria-label", `Allocated memory of ${m.device} over time, at most ${bytes(m.peak_bytes)}`);
      return [el("div", { class: "wb-memhead" }, el("span", { text: "Allocated memory" }), p.memory.length > 1 ? choose : el("span", { class: "wb-muted", text: m.device }),
        el("button", { type: "button", class: "wb-linkbutton", text: `peak ${bytes(m.peak_bytes)} at ${time(m.peak_ns)}`, title: "Show this moment", onclick: () => this.zoomAround(m.peak_ns) })), this.memory];
    }

    /* Only what the server offers: the embedded viewer, the file, the line for TensorBoard. */
    links(p) {
      const nodes = [];
      if (p.perfetto) nodes.push(el("button", { type: "button", class: "wb-button wb-perfettobutton", text: "Perfetto", title: "Open the trace in the Perfetto viewer, on this page", onclick: () => this.perfetto(p.perfetto) }));
      if (p.download) nodes.push(el("a", { class: "wb-linkbutton wb-download", href: p.download, download: "", text: "Download trace" }));
      if (p.tensorboard) {
        const copy = el("button", { type: "button", class: "wb-linkbutton", text: "Copy", title: "Copy the line", onclick: async () => {
          try {
            await navigator.clipboard.writeText(p.tensorboard);
            copy.textContent = "Copied";
          } catch {
            getSelection().selectAllChildren(line); // no clipboard on a page without https: the reader copies
            copy.textContent = "Press Ctrl+C";
          }
          setTimeout(() => { copy.textContent = "Copy"; }, 2000);
        } });
        const line = el("code", { class: "wb-command", text: p.tensorboard, title: p.tensorboard, tabindex: "0" });
        nodes.push(line, copy);
      }
      return nodes.length ? el("div", { class: "wb-timelinks" }, ...nodes) : null;
    }

    perfetto(template) {
      const url = new URL(template.replaceAll("{origin}", location.origin), location.href);
      if (url.origin !== location.origin) return; // nothing leaves the machine
      const frame = el("iframe", { class: "wb-perfettoframe", src: url.href, title: "Trace in Perfetto" });
      const dialog = el("dialog", { class: "wb-perfetto", "aria-label": "Trace in Perfetto", onclose: () => dialog.remove() },
        el("header", {}, el("b", { text: "Perfetto" }), el("span", { class: "wb-muted", text: "Esc closes" }), el("button", { type: "button", class: "wb-button", text: "Close", onclick: () => dialog.close() })), frame);
      const escape = (event) => {
        if (event.key !== "Escape") return;
        event.stopPropagation(); // the page's focus stays
        dialog.close();
      };
      dialog.addEventListener("keydown", escape);
      frame.addEventListener("load", () => {
        if (frame.contentDocument) frame.contentWindow.addEventListener("keydown", escape, true); // none: the browser's own error page
      });
      this.node.append(dialog); // within the container that the stylesheet is scoped to
      dialog.showModal();
    }

    /* Time and place of a pointer. */
    at(event) {
      const box = this.canvas.getBoundingClientRect();
      const x = event.clientX - box.left;
      return { x, y: event.clientY - box.top, t: this.from + ((x - GUTTER) / (box.width - GUTTER)) * (this.to - this.from) };
    }

    hit(event) {
      const { x, y, t } = this.at(event);
      if (x < GUTTER || y < RULER) return -1;
      const row = this.plan.rows.find((r) => y - RULER + this.scroll >= r.y && y - RULER + this.scroll < r.y + ROW - 1);
      if (!row) return -1;
      const slack = (this.to - this.from) / (this.canvas.clientWidth - GUTTER); // one pixel: thin events can be met, too
      const i = firstAfter(row.ids, this.events, t - slack);
      const id = row.ids[i];
      return id !== undefined && this.events.start[id] <= t + slack ? id : -1;
    }

    words(id) {
      const e = this.events;
      return `${e.names[e.name[id]]} · ${time(e.duration[id])}`;
    }

    down(event) {
      this.canvas.setPointerCapture(event.pointerId);
      const at = this.at(event);
      this.drag = { ...at, from: this.from, to: this.to, scroll: this.scroll, moved: false, isRange: event.shiftKey || at.y < RULER };
    }

    move(event) {
      const at = this.at(event);
      if (!this.drag) {
        const id = this.hit(event);
        this.point(at.x >= GUTTER ? at.t : null);
        this.tip.hidden = id < 0;
        if (id >= 0) {
          this.tip.textContent = this.words(id);
          this.tip.style.left = `${Math.min(at.x + 12, this.canvas.clientWidth - 230)}px`;
          this.tip.style.top = `${Math.min(at.y + 14, this.canvas.clientHeight - 34)}px`;
        }
        return;
      }
      const d = this.drag;
      if (Math.hypot(at.x - d.x, at.y - d.y) > 3) d.moved = true;
      if (!d.moved) return;
      this.tip.hidden = true;
      if (d.isRange) { d.now = at.x; this.paint(); return; }
      const moved = ((at.x - d.x) / (this.canvas.clientWidth - GUTTER)) * (d.to - d.from);
      this.scroll = d.scroll - (at.y - d.y);
      this.range(d.from - moved, d.to - moved);
    }

    up(event) {
      const d = this.drag;
      this.drag = null;
      if (!d) return;
      if (!d.moved) return this.select(this.hit(event));
      if (d.isRange && d.now !== undefined) {
        const t = (x) => d.from + ((Math.max(GUTTER, x) - GUTTER) / (this.canvas.clientWidth - GUTTER)) * (d.to - d.from);
        this.range(...[t(d.x), t(d.now)].sort((a, b) => a - b));
      }
    }

    wheel(event) {
      if (!event.ctrlKey && document.activeElement !== this.canvas) return; // else the page scrolls
      event.preventDefault();
      const at = this.at(event);
      if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        const step = ((event.deltaX || event.deltaY) / (this.canvas.clientWidth - GUTTER)) * (this.to - this.from);
        this.range(this.from + step, this.to + step);
      } else if (at.x < GUTTER) {
        this.scroll += event.deltaY;
        this.paint();
      } else this.zoom(2 ** (Math.max(-240, Math.min(240, event.deltaY)) / 240), at.t);
    }

    key(event) {
      const span = this.to - this.from;
      const pan = (share) => this.range(this.from + share * span, this.to + share * span);
      const rows = (n) => { this.scroll += n * ROW; this.paint(); };
      const keys = {
        "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), w: () => this.zoom(0.5), "-": () => this.zoom(2), s: () => this.zoom(2),
        ArrowLeft: () => pan(-0.15), a: () => pan(-0.15), ArrowRight: () => pan(0.15), d: () => pan(0.15), ArrowUp: () => rows(-2), ArrowDown: () => rows(2),
        0: () => this.range(0, this.span), Home: () => this.range(0, this.span), n: () => this.nextMatch(1), p: () => this.nextMatch(-1), f: () => this.zoomTo(this.selected),
      };
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) {
        if (event.key === "Escape" && this.selected >= 0) { event.stopPropagation(); this.select(-1); }
        return;
      }
      event.preventDefault();
      keys[event.key]();
    }

    range(from, to) {
      const span = Math.min(this.span, Math.max(LEAST_SPAN, to - from));
      this.from = Math.max(0, Math.min(from, this.span - span));
      this.to = this.from + span;
      this.paint();
    }

    zoom(factor, around = (this.from + this.to) / 2) {
      const share = (around - this.from) / (this.to - this.from);
      const span = Math.min(this.span, Math.max(LEAST_SPAN, (this.to - this.from) * factor));
      this.range(around - share * span, around - share * span + span);
    }

    zoomTo(id) {
      if (id < 0) return;
      const [start, duration] = [this.events.start[id], Math.max(this.events.duration[id], LEAST_SPAN)];
      this.range(start - 0.25 * duration, start + 1.25 * duration);
      this.reveal(id);
    }

    zoomAround(t) {
      const span = Math.min(this.to - this.from, this.span / 10);
      this.cursor = t;
      this.range(t - span / 2, t + span / 2);
    }

    /* Brings the event's row, and its time where that is out of sight, into view. */
    reveal(id) {
      const row = this.plan.rows.find((r) => r.lane === this.events.lane[id] && r.depth === this.events.depth[id]);
      const room = this.canvas.clientHeight - RULER;
      if (row.y < this.scroll || row.y + ROW > this.scroll + room) this.scroll = row.y - room / 2;
      const [start, end] = [this.events.start[id], this.events.start[id] + this.events.duration[id]];
      if (end < this.from || start > this.to) {
        const middle = (start + end) / 2;
        this.range(middle - (this.to - this.from) / 2, middle + (this.to - this.from) / 2);
      } else this.paint();
    }

    find(text) {
      const needle = text.trim().toLowerCase();
      this.isHit = null;
      this.matches = [];
      if (needle && this.events) {
        const e = this.events;
        const hits = e.names.map((name) => name.toLowerCase().includes(needle));
        this.isHit = hits;
        for (let i = 0; i < e.n; i += 1) if (hits[e.name[i]]) this.matches.push(i);
        this.matches.sort((a, b) => e.start[a] - e.start[b]);
        const total = this.matches.reduce((sum, i) => sum + e.duration[i], 0);
        this.found.textContent = this.matches.length ? `${this.matches.length.toLocaleString("en")} found, ${time(total)}` : "none found";
      } else this.found.textContent = "";
      this.node.dataset.matches = String(this.matches.length);
      this.paint();
    }

    nextMatch(step) {
      if (!this.matches.length) return;
      const now = this.matches.indexOf(this.selected);
      const next = now < 0 ? (step > 0 ? 0 : this.matches.length - 1) : (now + step + this.matches.length) % this.matches.length;
      this.select(this.matches[next]);
      this.reveal(this.selected);
    }

    select(id) {
      this.selected = id;
      this.node.dataset.selected = id < 0 ? "" : this.events.names[this.events.name[id]];
      this.say();
      this.paint();
    }

    say() {
      const e = this.events;
      const id = this.selected;
      if (id < 0) {
        this.detail.replaceChildren(el("span", { class: "wb-muted", text: "Click an event for its numbers. Click in, then wheel or + and − to zoom; drag or arrows to move; drag the ruler to zoom to a stretch; 0 for all." }));
        return;
      }
      const facts = [time(e.duration[id]), `from ${time(e.start[id])}`, `to ${time(e.start[id] + e.duration[id])}`, e.categories[e.category[id]], this.lanes[e.lane[id]]];
      const name = e.names[e.name[id]];
      this.detail.replaceChildren(el("b", { text: name, title: name }), el("span", { class: "wb-muted", text: facts.join(" · "), title: `${e.duration[id].toLocaleString("en")} ns from ${e.start[id].toLocaleString("en")} ns` }));
    }

    point(t) {
      this.cursor = t;
      if (t === null) this.tip.hidden = true;
      this.paint();
    }

    pointAt(event) {
      const box = this.memory.getBoundingClientRect();
      const x = event.clientX - box.left;
      this.point(x < GUTTER ? null : this.from + ((x - GUTTER) / (box.width - GUTTER)) * (this.to - this.from));
    }

    paint() {
      if (this.queued) return;
      this.queued = requestAnimationFrame(() => {
        this.queued = 0;
        this.drawEvents();
        this.drawMemory();
      });
    }

    themeChanged() {
      this.paint();
    }

    /* A canvas cleared at the screen's own resolution; null while it has no size. */
    sheet(canvas) {
      const [w, h] = [canvas.clientWidth, canvas.clientHeight];
      if (!w || !h || !this.events) return null;
      const dense = window.devicePixelRatio || 1;
      if (canvas.width !== Math.round(w * dense) || canvas.height !== Math.round(h * dense)) [canvas.width, canvas.height] = [Math.round(w * dense), Math.round(h * dense)];
      const g = canvas.getContext("2d");
      g.setTransform(dense, 0, 0, dense, 0, 0);
      g.clearRect(0, 0, w, h);
      g.font = "11px system-ui, sans-serif";
      g.textBaseline = "middle";
      return { g, w, h, x: (t) => GUTTER + ((t - this.from) / (this.to - this.from)) * (w - GUTTER) };
    }

    drawEvents() {
      const sheet = this.sheet(this.canvas);
      if (!sheet) return;
      const { g, w, h, x } = sheet;
      const e = this.events;
      this.scroll = Math.max(0, Math.min(this.scroll, this.plan.height - (h - RULER)));
      this.node.dataset.from = String(Math.round(this.from));
      this.node.dataset.to = String(Math.round(this.to));
      const [ink, muted, line, paper] = ["--wb-ink", "--wb-muted", "--wb-line", "--wb-paper"].map(css);
      const fills = themed(e.colours);
      const inks = fills.map((fill) => (isLight(fill) ? "#0e131a" : "#ffffff"));
      this.ruler(sheet, muted, line);
      g.save();
      g.beginPath();
      g.rect(0, RULER, w, h - RULER);
      g.clip();
      g.translate(0, RULER - this.scroll);
      this.plan.tops.forEach((top, lane) => {
        if (lane) {
          g.fillStyle = line;
          g.fillRect(0, top - Math.ceil(LANE_GAP / 2), w, 1);
        }
      });
      g.save();
      g.beginPath();
      g.rect(GUTTER, 0, w - GUTTER, this.plan.height);
      g.clip();
      let drawn = 0;
      for (const row of this.plan.rows) {
        if (row.y + ROW < this.scroll || row.y > this.scroll + h) continue;
        let last = -1;
        for (let i = firstAfter(row.ids, e, this.from); i < row.ids.length; i += 1) {
          const id = row.ids[i];
          if (e.start[id] > this.to) break;
          const left = Math.max(GUTTER - 1, x(e.start[id]));
          const right = Math.min(w + 1, x(e.start[id] + e.duration[id]));
          const isHit = !this.isHit || this.isHit[e.name[id]];
          // Of events within one pixel one is drawn: the first, or one that was searched for.
          if (right <= last && !(this.isHit && isHit)) continue;
          const width = Math.max(1, right - left - (right - left > 3 ? 0.5 : 0));
          g.globalAlpha = isHit ? 1 : 0.16;
          g.fillStyle = fills[e.category[id]];
          g.fillRect(left, row.y, width, ROW - 1);
          last = Math.max(last, Math.floor(right));
          drawn += 1;
          if (width > 34) {
            const room = Math.floor((width - 8) / 5.9);
            const name = e.names[e.name[id]];
            g.fillStyle = isHit ? inks[e.category[id]] : ink;
            g.globalAlpha = isHit ? 1 : 0.45;
            g.fillText(name.length > room ? `${name.slice(0, room - 1)}…` : name, left + 4, row.y + ROW / 2);
          }
        }
      }
      g.globalAlpha = 1;
      this.node.dataset.drawn = String(drawn);
      this.outline(g, x);
      g.restore();
      this.plan.tops.forEach((top, lane) => {
        g.fillStyle = paper;
        g.fillRect(0, top - 2, GUTTER - 4, 16);
        g.fillStyle = muted;
        const name = this.lanes[lane];
        g.fillText(name.length > 23 ? `${name.slice(0, 22)}…` : name, 0, top + ROW / 2);
      });
      g.restore();
      this.vertical(sheet, h);
      if (this.drag && this.drag.isRange && this.drag.now !== undefined) {
        g.fillStyle = css("--wb-d20");
        g.fillRect(Math.min(this.drag.x, this.drag.now), 0, Math.abs(this.drag.now - this.drag.x), h);
      }
      this.scrollbar(sheet);
    }

    outline(g, x) {
      if (this.selected < 0) return;
      const e = this.events;
      const row = this.plan.rows.find((r) => r.lane === e.lane[this.selected] && r.depth === e.depth[this.selected]);
      const left = x(e.start[this.selected]);
      g.strokeStyle = css("--wb-focus");
      g.lineWidth = 2;
      g.strokeRect(left - 1, row.y - 1, Math.max(3, x(e.start[this.selected] + e.duration[this.selected]) - left + 2), ROW + 1);
    }

    ruler({ g, w, x, h }, muted, line) {
      const step = tickStep(this.to - this.from);
      g.textAlign = "center";
      for (let t = Math.ceil(this.from / step) * step; t <= this.to; t += step) {
        g.fillStyle = line;
        g.fillRect(x(t), RULER - 4, 1, h);
        g.fillStyle = muted;
        if (x(t) > GUTTER + 20 && x(t) < w - 24) g.fillText(this.tick(t, step), x(t), 7);
      }
      g.textAlign = "left";
    }

    /* All ticks in one unit, with as many decimals as tell them apart. */
    tick(t, step) {
      const [size, unit] = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]].find(([s]) => this.to >= s) || [1, "ns"];
      return `${(t / size).toLocaleString("en", { maximumFractionDigits: Math.max(0, Math.min(9, Math.ceil(-Math.log10(step / size)))) })} ${unit}`;
    }

    vertical({ g, x }, h) {
      if (this.cursor === null || this.cursor < this.from || this.cursor > this.to) return;
      g.fillStyle = css("--wb-focus");
      g.globalAlpha = 0.6;
      g.fillRect(x(this.cursor), 0, 1, h);
      g.globalAlpha = 1;
    }

    scrollbar({ g, w, h }) {
      const room = h - RULER;
      if (this.plan.height <= room) return;
      g.fillStyle = css("--wb-muted");
      g.globalAlpha = 0.5;
      g.fillRect(w - 4, RULER + (this.scroll / this.plan.height) * room, 4, (room / this.plan.height) * room);
      g.globalAlpha = 1;
    }

    drawMemory() {
      const sheet = this.curves && this.curves.length ? this.sheet(this.memory) : null;
      if (!sheet) return;
      const { g, w, h, x } = sheet;
      const m = this.curves[this.device];
      const top = Math.max(m.peak_bytes, 1);
      const y = (n) => h - 1 - (Math.max(0, n) / top) * (h - 12);
      g.fillStyle = css("--wb-line");
      g.fillRect(GUTTER, h - 1, w - GUTTER, 1);
      let first = 0;
      while (first + 1 < m.n && m.time[first + 1] <= this.from) first += 1;
      g.save();
      g.beginPath();
      g.rect(GUTTER, 0, w - GUTTER, h);
      g.clip();
      const path = () => {
        g.beginPath();
        let level = y(m.n ? m.bytes[first] : 0);
        g.moveTo(x(m.n ? Math.max(this.from, m.time[first]) : this.from), level);
        for (let i = first + 1; i < m.n && m.time[i - 1] <= this.to; i += 1) {
          g.lineTo(x(m.time[i]), level);
          level = y(m.bytes[i]);
          g.lineTo(x(m.time[i]), level);
        }
        g.lineTo(w, level);
      };
      path();
      g.lineTo(w, h - 1);
      g.lineTo(x(m.n ? Math.max(this.from, m.time[first]) : this.from), h - 1);
      g.fillStyle = css("--wb-d20");
      g.fill();
      path();
      g.strokeStyle = css("--wb-d");
      g.lineWidth = 1.2;
      g.stroke();
      g.fillStyle = css("--wb-focus");
      g.beginPath();
      g.arc(x(m.peak_ns), y(m.peak_bytes), 3.5, 0, 7);
      g.fill();
      g.restore();
      g.fillStyle = css("--wb-muted");
      g.fillText(bytes(top), 0, 12);
      g.fillText("0 B", 0, h - 7);
      this.vertical(sheet, h);
      if (this.cursor !== null) {
        let [low, high] = [0, m.n];
        while (low < high) {
          const middle = (low + high) >> 1;
          if (m.time[middle] > this.cursor) high = middle;
          else low = middle + 1;
        }
        g.fillStyle = css("--wb-ink");
        g.fillText(low ? `${bytes(m.bytes[low - 1])} now` : "not known", 0, h / 2);
      }
    }

    dispose() {
      this.observer.disconnect();
      super.dispose();
    }
  }

  return { KINDS: { proftimeline: TimelineLab } };
};
