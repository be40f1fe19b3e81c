"use strict";
/* The panels of the workbench. One global, `Workbench`, with `mount` for each Gradio component.
 *
 * A panel receives one JSON payload (workbench/figures) and keeps its Plotly nodes between updates, so zoom
 * survives. All maps share one coordinate: input pixels (y, x). Panels talk through document events "wb":
 *   {kind: "hover" | "leave" | "pick" | "range" | "frame", ...}
 * Hover, zoom and playback never leave the browser; only a pick calls `trigger` and so the server.
 */
(() => {
  if (window.Workbench) return;
  let P = null; // captured at the first mount: another component might load its own copy later
  let Player = null; // from scan_player.js
  let KINDS = null;
  const CONFIG = { displayModeBar: false, responsive: false, doubleClick: false, showTips: false };
  const CLICK_SLOP_PX = 4; // more movement between press and release is a zoom
  const panels = new Set();
  let focus = null; // {stage, y, x, stride}
  let hover = null; // {y, x} in input pixels

  const send = (detail) => document.dispatchEvent(new CustomEvent("wb", { detail }));
  const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();

  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === undefined || value === null || value === false) continue;
      if (key === "class") node.className = value;
      else if (key === "text") node.textContent = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  /* Colour tokens "@a" in figures become the CSS variables of the current theme. */
  function themed(value) {
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === "object") {
      const out = {};
      for (const key in value) out[key] = themed(value[key]);
      return out;
    }
    if (typeof value === "string" && value[0] === "@") return css(`--wb-${value.slice(1)}`) || value;
    return value;
  }

  function decode(z) {
    if (!z || !z.bdata) return null;
    const bytes = Uint8Array.from(atob(z.bdata), (c) => c.charCodeAt(0));
    const [rows, columns] = z.shape.split(",").map(Number);
    return { values: new Float32Array(bytes.buffer), rows, columns };
  }

  function number(value, digits = 3) {
    if (!Number.isFinite(value)) return "n/a";
    if (value === 0) return "0";
    const size = Math.floor(Math.log10(Math.abs(value)));
    if (size >= 5 || size < -3) return value.toExponential(digits - 1);
    return value.toLocaleString("en", {
      minimumFractionDigits: Math.max(0, digits - 1 - size),
      maximumFractionDigits: Math.max(0, digits - 1 - size),
    });
  }

  /* One map: a Plotly plot whose axes are input pixels, with a canvas for path, hover and focus. */
  class MapView {
    constructor(panel) {
      this.panel = panel;
      this.plot = el("div", { class: "wb-plot" });
      this.canvas = el("canvas", { class: "wb-overlay", "aria-hidden": "true" });
      this.tip = el("div", { class: "wb-tip", hidden: true });
      this.frame = el(
        "div",
        { class: "wb-map", tabindex: "0", role: "img" },
        this.plot, this.canvas, this.tip,
      );
      this.left = el("span");
      this.right = el("span", { class: "wb-muted" });
      this.caption = el("figcaption", {}, this.left, this.right);
      this.node = el("figure", {}, this.frame, this.caption);
      this.listen();
      this.observer = new ResizeObserver(() => this.resize());
      this.observer.observe(this.frame);
    }

    listen() {
      let pressed = null;
      this.frame.addEventListener("pointermove", (event) => {
        const point = this.point(event);
        if (point) send({ kind: "hover", ...point, source: this });
        else send({ kind: "leave" });
      });
      this.frame.addEventListener("pointerleave", () => send({ kind: "leave" }));
      this.frame.addEventListener("pointerdown", (e) => (pressed = [e.clientX, e.clientY]), true);
      window.addEventListener("pointerup", (event) => {
        const start = pressed;
        pressed = null;
        if (!start) return; // Plotly lays a cover over the page while pressed, so no look at the target
        if (Math.hypot(event.clientX - start[0], event.clientY - start[1]) > CLICK_SLOP_PX) return;
        const point = this.point(event);
        if (point) this.panel.pick(point.y, point.x);
      }, true);
      this.frame.addEventListener("dblclick", () => send({ kind: "range", range: null }));
      this.frame.addEventListener("keydown", (event) => {
        const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
        const step = move[event.key];
        if (!step || !focus) return;
        event.preventDefault();
        const [h, w] = this.panel.payload.input;
        const y = Math.min(h - 1, Math.max(0, (focus.y + step[0] + 0.5) * focus.stride));
        const x = Math.min(w - 1, Math.max(0, (focus.x + step[1] + 0.5) * focus.stride));
        this.panel.pick(y, x);
      });
    }

    update(spec) {
      this.spec = spec;
      this.grid = spec.read ? decode(spec.figure.data[spec.read.trace].z) : null;
      const [h, w] = this.panel.payload.input;
      this.frame.style.aspectRatio = `${w} / ${h}`;
      this.frame.setAttribute("aria-label", spec.alt || `${this.panel.payload.title}: map`);
      this.left.textContent = spec.left ? spec.left.text : "";
      this.left.className = spec.left && spec.left.tone ? `wb-tone-${spec.left.tone}` : "";
      this.right.textContent = spec.right ? spec.right.text : "";
      this.caption.hidden = !spec.left && !spec.right;
      this.frame.dataset.stage = spec.stage || "";
      this.draw();
    }

    draw() {
      const figure = this.spec.figure;
      const layout = themed(figure.layout);
      layout.width = this.frame.clientWidth || 200;
      layout.height = this.frame.clientHeight || 200;
      layout.uirevision = this.panel.payload.input.join("x");
      P.react(this.plot, themed(figure.data), layout, CONFIG).then(() => {
        if (!this.attached) {
          this.attached = true;
          this.plot.on("plotly_relayout", (change) => this.zoomed(change));
        }
        this.overlay();
      });
    }

    resize() {
      if (!this.spec || !this.frame.clientWidth) return;
      const size = { width: this.frame.clientWidth, height: this.frame.clientHeight };
      if (this.attached) P.relayout(this.plot, size).then(() => this.overlay());
    }

    zoomed(change) {
      if (this.quiet || change["xaxis.range[0]"] === undefined) return this.overlay();
      const axis = this.plot._fullLayout;
      send({ kind: "range", range: { x: axis.xaxis.range.slice(), y: axis.yaxis.range.slice() }, source: this });
    }

    range(range) {
      const [h, w] = this.panel.payload.input;
      const next = range || { x: [0, w], y: [h, 0] };
      this.quiet = true;
      P.relayout(this.plot, { "xaxis.range": next.x.slice(), "yaxis.range": next.y.slice() }).then(() => {
        this.quiet = false;
        this.overlay();
      });
    }

    axes() {
      const full = this.plot._fullLayout;
      return full && full.xaxis && full.xaxis._length ? full : null;
    }

    /* Input pixel under a pointer event, or null outside the picture. */
    point(event) {
      const axes = this.axes();
      if (!axes) return null;
      const box = this.plot.getBoundingClientRect();
      const x = axes.xaxis.p2d(event.clientX - box.left - axes.xaxis._offset);
      const y = axes.yaxis.p2d(event.clientY - box.top - axes.yaxis._offset);
      const [h, w] = this.panel.payload.input;
      return x >= 0 && y >= 0 && x < w && y < h ? { y, x } : null;
    }

    overlay() {
      const axes = this.axes();
      if (!axes) return;
      const ratio = window.devicePixelRatio || 1;
      const { clientWidth: width, clientHeight: height } = this.frame;
      if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
        this.canvas.width = Math.round(width * ratio);
        this.canvas.height = Math.round(height * ratio);
      }
      const g = this.canvas.getContext("2d");
      g.setTransform(ratio, 0, 0, ratio, 0, 0);
      g.clearRect(0, 0, width, height);
      const { xaxis, yaxis } = axes;
      g.save();
      g.beginPath();
      g.rect(xaxis._offset, yaxis._offset, xaxis._length, yaxis._length);
      g.clip();
      const sx = (x) => xaxis._offset + xaxis.d2p(x);
      const sy = (y) => yaxis._offset + yaxis.d2p(y);
      if (this.spec.path && this.panel.player) this.panel.player.paint(g, sx, sy);
      if (focus) this.crosshair(g, sx, sy, axes);
      if (hover) this.box(g, sx, sy, hover.y, hover.x, this.spec.cell, css("--wb-hover"), 1.5);
      g.restore();
    }

    box(g, sx, sy, y, x, cell, colour, width) {
      const left = sx(Math.floor(x / cell) * cell);
      const top = sy(Math.floor(y / cell) * cell);
      const w = Math.max(3, sx((Math.floor(x / cell) + 1) * cell) - left);
      const h = Math.max(3, sy((Math.floor(y / cell) + 1) * cell) - top);
      g.lineWidth = width + 2;
      g.strokeStyle = "rgba(10,15,25,.75)";
      g.strokeRect(left, top, w, h);
      g.lineWidth = width;
      g.strokeStyle = colour;
      g.strokeRect(left, top, w, h);
    }

    crosshair(g, sx, sy, axes) {
      const y = (focus.y + 0.5) * focus.stride;
      const x = (focus.x + 0.5) * focus.stride;
      const colour = css("--wb-focus");
      g.strokeStyle = colour;
      g.globalAlpha = 0.55;
      g.lineWidth = 1;
      const gap = Math.abs(sx(focus.stride) - sx(0)) * 0.5 + 3;
      const line = (x0, y0, x1, y1) => {
        g.beginPath();
        g.moveTo(x0, y0);
        g.lineTo(x1, y1);
        g.stroke();
      };
      line(sx(x), axes.yaxis._offset, sx(x), sy(y) - gap);
      line(sx(x), sy(y) + gap, sx(x), axes.yaxis._offset + axes.yaxis._length);
      line(axes.xaxis._offset, sy(y), sx(x) - gap, sy(y));
      line(sx(x) + gap, sy(y), axes.xaxis._offset + axes.xaxis._length, sy(y));
      g.globalAlpha = 1;
      this.box(g, sx, sy, y, x, focus.stride, colour, 2);
    }

    readout(point) {
      if (!point) return void (this.tip.hidden = true);
      const cell = this.spec.cell;
      const stage = this.spec.stage || this.panel.payload.stage;
      let text = `stage ${stage} · row ${Math.floor(point.y / cell)}, column ${Math.floor(point.x / cell)}`;
      const read = this.spec.read;
      if (read && this.grid) {
        const row = Math.min(this.grid.rows - 1, Math.floor(point.y / read.cell));
        const column = Math.min(this.grid.columns - 1, Math.floor(point.x / read.cell));
        let value = this.grid.values[row * this.grid.columns + column];
        if (read.power === 10) value = 10 ** value;
        if (read.power === -2) value = -Math.sign(value) * value * value;
        text += ` · ${number(value)} ${read.unit}`;
      }
      if (this.spec.path && this.panel.player) text += this.panel.player.readout(point);
      this.tip.textContent = text;
      this.tip.hidden = false;
    }

    dispose() {
      this.observer.disconnect();
      if (this.attached) P.purge(this.plot);
    }
  }

  class Panel {
    constructor(element, props, trigger) {
      this.props = props;
      this.trigger = trigger;
      this.maps = new Map();
      this.title = el("h2");
      this.badges = el("div", { class: "wb-badges" });
      this.progress = el("div", { class: "wb-progress", role: "status" });
      this.body = el("div", { class: "wb-body" });
      this.sentence = el("p", { class: "wb-sentence" });
      this.mapRow = el("div", { class: "wb-maps" });
      this.side = el("div", { class: "wb-side" });
      this.node = el(
        "section", { class: "wb-panel" },
        el("header", {}, this.title, this.badges), this.progress, this.body, this.sentence,
      );
      element.replaceChildren(this.node);
      panels.add(this);
      document.addEventListener("wb", (this.listener = (event) => this.on(event.detail)));
    }

    update() {
      if (!this.props.value) return;
      const payload = JSON.parse(this.props.value);
      if (this.payload && payload.result_id && this.payload.result_id === payload.result_id) return;
      this.payload = payload;
      this.node.dataset.panel = payload.id;
      this.node.dataset.resultId = payload.result_id || "";
      this.node.setAttribute("aria-label", payload.title);
      this.title.textContent = payload.title;
      const badges = (payload.badges || []).slice();
      if (payload.stored) badges.unshift({ text: "stored example", tone: "stored" });
      this.badges.replaceChildren(...badges.map((b) => el("span", { class: `wb-badge wb-badge-${b.tone}`, text: b.text, title: b.text })));
      this.sentence.textContent = payload.sentence || "";
      this.build();
      overlays();
    }

    build() {
      const p = this.payload;
      if (p.empty) {
        this.dropMaps([]);
        this.player = null;
        this.body.replaceChildren(el(
          "div", { class: "wb-empty" },
          p.empty.photo ? el("img", { src: p.empty.photo, alt: "The photo" }) : null,
          el("div", {}, el("h3", { text: p.empty.title }), el("p", { text: p.empty.text })),
        ));
        return;
      }
      if (p.player && !this.player) this.player = new Player(this);
      const parts = [];
      const side = [];
      if (p.maps) {
        this.dropMaps(p.maps.map((m) => m.key));
        const views = p.maps.map((spec) => {
          if (!this.maps.has(spec.key)) this.maps.set(spec.key, new MapView(this));
          return this.maps.get(spec.key);
        });
        this.mapRow.replaceChildren(...views.map((v) => v.node));
        this.mapRow.style.setProperty("--wb-columns", views.length);
        parts.push(this.mapRow);
      }
      if (p.player) side.push(this.player.tabs);
      if (p.bars) side.push(this.bars(p.bars));
      if (p.scale) side.push(this.scale(p.scale));
      if (p.plot) side.push(this.chart(p.plot));
      if (p.table) side.push(this.table(p.table));
      if (p.expectation) side.push(this.table(p.expectation));
      if (p.player) side.push(this.player.node);
      this.side.replaceChildren(...side);
      const notes = [...new Set(p.notes || [])].join(" ");
      if (notes) (p.player ? this.mapRow : this.side).append(el("p", { class: "wb-note", text: notes, title: notes }));
      parts.push(this.side);
      this.body.replaceChildren(...parts);
      for (const spec of p.maps || []) this.maps.get(spec.key).update(spec);
      if (p.player) this.player.update(p.player);
      if (p.plot) this.drawChart();
    }

    dropMaps(keep) {
      for (const [key, view] of this.maps) {
        if (keep.includes(key)) continue;
        view.dispose();
        this.maps.delete(key);
      }
    }

    table(spec) {
      const head = el("tr", {}, ...spec.columns.map((c, i) =>
        el("th", { scope: "col", class: i ? "wb-number" : "" },
          c.tone ? el("i", { class: `wb-dot wb-fill-${c.tone}` }) : null, document.createTextNode(c.text))));
      const rows = spec.rows.map((row) => el("tr", {}, ...row.map((cell, i) =>
        el(i ? "td" : "th", { class: i ? "wb-number" : "", scope: i ? null : "row", text: cell, title: i ? null : cell }))));
      return el("table", { class: "wb-table" }, el("thead", {}, head), el("tbody", {}, ...rows));
    }

    scale(spec) {
      const bar = el("span", { class: "wb-scalebar" });
      bar.style.background = `linear-gradient(90deg, ${spec.stops.join(",")})`;
      return el("div", { class: "wb-scale" },
        el("span", { class: "wb-number", text: spec.low }), bar, el("span", { class: "wb-number", text: spec.high }),
        el("span", { class: "wb-muted", text: spec.label, title: spec.label }));
    }

    chart(spec) {
      this.chartNode ||= el("div", { class: "wb-chart", role: "img" });
      this.chartNode.setAttribute("aria-label", spec.alt);
      if (!this.chartObserver) {
        this.chartObserver = new ResizeObserver(() => this.drawChart());
        this.chartObserver.observe(this.chartNode);
      }
      const legend = (spec.legend || []).map((item) => {
        const dot = el("i", { class: "wb-dot" });
        dot.style.background = `var(--wb-${item.colour.slice(1)})`;
        return el("span", { class: "wb-legend" }, dot, document.createTextNode(item.text));
      });
      return el("div", { class: "wb-chartbox" },
        spec.heading ? el("div", { class: "wb-heading" }, el("span", { text: spec.heading }), ...legend) : null,
        this.chartNode);
    }

    drawChart() {
      const spec = this.payload && this.payload.plot;
      if (!spec || !this.chartNode || !this.chartNode.clientWidth) return;
      const layout = themed(spec.figure.layout);
      layout.width = this.chartNode.clientWidth;
      layout.height = this.chartNode.clientHeight;
      layout.hoverlabel = { bgcolor: css("--wb-paper"), bordercolor: css("--wb-line"), font: { color: css("--wb-ink"), size: 11 } };
      P.react(this.chartNode, themed(spec.figure.data), layout, CONFIG);
    }

    bars(spec) {
      const longest = Math.max(...spec.bars.map((b) => b.segments.reduce((sum, s) => sum + s.ms, 0)));
      return el("div", { class: "wb-bars" }, ...spec.bars.map((bar) => {
        const segments = bar.segments.map((s) => {
          const share = (100 * s.ms) / longest;
          const text = `${s.name}: ${number(s.ms)} ms` + (s.scan_ms ? `, of which scan ${number(s.scan_ms)} ms` : "");
          const scan = el("i", { class: "wb-scanpart" });
          scan.style.width = `${s.ms ? (100 * s.scan_ms) / s.ms : 0}%`;
          const isStage = s.stage >= 1 && s.stage <= 4;
          const node = el(isStage ? "button" : "span", {
            class: "wb-segment", type: isStage ? "button" : null, "data-stage": s.stage, title: text, "aria-label": text,
            onclick: isStage ? () => this.pickStage(s.stage) : undefined,
          }, scan, el("span", { text: share > 11 ? s.name : "" }));
          node.style.width = `${share}%`;
          return node;
        });
        return el("div", { class: `wb-bar wb-bar-${bar.tone}` },
          el("div", { class: "wb-barhead" },
            el("b", { class: `wb-tone-${bar.tone}`, text: bar.label }), el("b", { class: "wb-number", text: bar.total }),
            el("span", { class: "wb-muted", text: `20 to 80 %: ${bar.range} · ${bar.scan}` })),
          el("div", { class: "wb-track" }, ...segments));
      }), el("div", { class: "wb-muted wb-axisnote", text: spec.text }));
    }

    markStage() {
      for (const node of this.side.querySelectorAll(".wb-segment")) {
        node.classList.toggle("wb-current", !!focus && Number(node.dataset.stage) === focus.stage);
      }
    }

    pick(y, x) {
      if (!focus) return;
      const [h, w] = this.payload.input;
      const rows = Math.ceil(h / focus.stride);
      const columns = Math.ceil(w / focus.stride);
      focus = {
        ...focus,
        y: Math.min(rows - 1, Math.floor(y / focus.stride)),
        x: Math.min(columns - 1, Math.floor(x / focus.stride)),
      };
      send({ kind: "pick" });
      this.trigger("pick", { stage: focus.stage, y: focus.y, x: focus.x });
    }

    pickStage(stage) {
      this.trigger("pick", { stage, keep: true });
    }

    overlays() {
      for (const view of this.maps.values()) view.overlay();
    }

    on(detail) {
      if (!this.node.isConnected) return this.dispose();
      if (!this.payload) return;
      if (detail.kind === "hover" || detail.kind === "leave") {
        for (const view of this.maps.values()) {
          view.overlay();
          view.readout(detail.kind === "hover" && detail.source === view ? detail : null);
        }
      } else if (detail.kind === "pick") {
        if (this.player && !this.payload.empty) this.player.follow();
        this.overlays();
        this.markStage();
      } else if (detail.kind === "range") {
        for (const view of this.maps.values()) if (view !== detail.source) view.range(detail.range);
      } else if (detail.kind === "theme") {
        for (const view of this.maps.values()) if (view.spec) view.draw();
        this.drawChart();
        if (this.player && this.player.sequences) this.player.paintStrip();
      } else if (detail.kind === "status") {
        this.status(detail.status);
        if (this.player && !this.payload.empty) this.player.follow();
        this.overlays();
        this.markStage();
      }
    }

    status(status) {
      const mine = (status.panels || {})[this.payload.id];
      this.node.classList.toggle("wb-busy", !!mine);
      this.progress.textContent = mine ? mine.text : "";
      this.progress.style.setProperty("--wb-done", mine && mine.share ? `${100 * mine.share}%` : "0%");
    }

    dispose() {
      document.removeEventListener("wb", this.listener);
      for (const view of this.maps.values()) view.dispose();
      if (this.chartObserver) this.chartObserver.disconnect();
      panels.delete(this);
    }
  }

  function overlays() {
    for (const panel of panels) {
      panel.overlays();
      if (panel.payload) panel.markStage();
    }
  }

  // Registered before any panel, so `hover` is set when the panels hear of it.
  document.addEventListener("wb", ({ detail }) => {
    if (detail.kind === "hover") hover = { y: detail.y, x: detail.x };
    if (detail.kind === "leave") hover = null;
    if (detail.kind === "status" && detail.status.focus) focus = detail.status.focus;
  });
  new MutationObserver(() => send({ kind: "theme" })).observe(document.body, {
    attributes: true, attributeFilter: ["class"],
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !focus) return;
    for (const panel of panels) {
      if (!panel.payload || panel.payload.empty) continue;
      panel.trigger("pick", { stage: focus.stage, clear: true });
      break;
    }
  });

  /* The other files, put together at the first mount, when all scripts are loaded. */
  function assemble() {
    P = window.Plotly;
    const kit = { el, send, css, focus: () => focus };
    const page = window.WorkbenchParts.page(kit);
    Player = window.WorkbenchParts.player(kit).Player;
    KINDS = {
      panel: Panel, photos: page.PhotoPicker, status: page.Status, header: page.Header, sidebox: page.Sidebox,
    };
  }

  window.Workbench = {
    state: () => ({ focus, hover }),
    panels: () => [...panels].filter((p) => p.payload).map((p) => ({ id: p.payload.id, bytes: p.props.value.length })),
    mount(kind, element, props, trigger, watch) {
      if (!KINDS) assemble();
      const view = new KINDS[kind](element, props, trigger);
      watch("value", () => view.update());
      view.update();
    },
  };
})();
