"use strict";
/* The panels of the workbench. One global, `Workbench`, with `mount` for each Gradio component.
 *
 * A panel receives one JSON payload (workbench/figures) and keeps its Plotly nodes between updates, so zoom
 * survives. All maps share one coordinate: input pixels (y, x). Panels talk through document events "wb":
 *   {kind: "hover" | "leave" | "pick" | "range" | "status" | "theme", ...}
 * Hover, zoom and playback never leave the browser; only a pick calls `trigger` and so the server.
 */
(() => {
  if (window.Workbench) return;
  let P = null; // captured at the first mount: another component might load its own copy later
  let parts = null; // the other files, put together at the first mount
  let KINDS = null;
  const CONFIG = { displayModeBar: false, responsive: false, doubleClick: false, showTips: false };
  const panels = new Set();
  let focus = null; // {stage, y, x, stride}
  let hover = null; // {y, x} in input pixels

  const send = (detail) => document.dispatchEvent(new CustomEvent("wb", { detail }));
  let style = {}; // CSS variables already asked for; a theme change empties it
  const css = (name) => (style[name] ||= getComputedStyle(document.body).getPropertyValue(name).trim());

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

  class Panel {
    constructor(element, props, trigger) {
      this.props = props;
      this.trigger = trigger;
      this.maps = new Map();
      this.variant = 0;
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
      this.node.classList.toggle("wb-live", !!payload.is_live); // grows while it is computed: not dimmed
      this.node.setAttribute("aria-label", payload.title);
      this.title.textContent = payload.title;
      const badges = (payload.badges || []).slice();
      if (payload.stored) badges.unshift({ text: "stored example", tone: "stored" });
      this.badges.replaceChildren(...badges.map((b) => el("span", { class: `wb-badge wb-badge-${b.tone}`, text: b.text, title: b.tip || b.text })));
      this.sentence.textContent = this.sentence.title = payload.sentence || "";
      if (payload.empty) this.buildEmpty(payload.empty);
      else this.build();
      overlays();
    }

    buildEmpty(spec) {
      this.dropMaps([]);
      this.player = null;
      this.body.replaceChildren(el(
        "div", { class: "wb-empty" },
        spec.photo ? el("img", { src: spec.photo, alt: "The photo" }) : null,
        el("div", {}, el("h3", { text: spec.title }), el("p", { text: spec.text })),
      ));
    }

    build() {
      const p = this.payload;
      if (p.player && !this.player) this.player = new parts.Player(this);
      const content = [];
      const side = [];
      if (p.maps || p.variants) content.push(this.mapRow);
      if (p.player) side.push(this.player.tabs);
      if (p.variants) side.push(this.switcher(p.variants));
      if (p.bars) side.push(parts.bars(p.bars, (stage) => this.pickStage(stage)));
      if (p.scale || p.variants) side.push((this.scaleNode = el("div")));
      if (p.plot) side.push(this.chart(p.plot));
      if (p.table) side.push(parts.table(p.table));
      if (p.expectation) side.push(parts.table(p.expectation));
      if (p.shares) side.push(parts.shares(p.shares));
      if (p.player) side.push(this.player.node);
      this.side.replaceChildren(...side);
      const notes = [...new Set(p.notes || [])].join(" ");
      const note = notes ? el("p", { class: "wb-note", text: notes, title: notes }) : null;
      if (note && !p.player) this.side.append(note);
      content.push(this.side);
      this.body.replaceChildren(...content);
      this.showMaps();
      if (note && p.player) this.mapRow.append(note);
      if (p.player) {
        for (const spec of p.maps) this.maps.get(spec.key).painter = spec.path ? this.player : null;
        this.player.update(p.player);
      }
      if (p.plot) this.drawChart();
    }

    /* The maps of the payload or of the variant chosen; views with the same key are kept. */
    showMaps() {
      const { maps, scale } = this.payload.variants ? this.payload.variants[this.variant] : this.payload;
      if (this.scaleNode && scale) this.scaleNode.replaceWith((this.scaleNode = parts.scale(scale)));
      if (!maps) return;
      this.dropMaps(maps.map((m) => m.key));
      const views = maps.map((spec) => {
        if (!this.maps.has(spec.key)) this.maps.set(spec.key, new parts.MapView(this));
        return this.maps.get(spec.key);
      });
      this.mapRow.replaceChildren(...views.map((v) => v.node));
      this.mapRow.style.setProperty("--wb-columns", this.payload.columns || views.length);
      for (const spec of maps) this.maps.get(spec.key).update(spec);
    }

    /* A small switch between several readings of the same maps, handled here. */
    switcher(variants) {
      this.variant = Math.min(this.variant, variants.length - 1);
      const node = el("div", { class: "wb-segmented", role: "radiogroup", "aria-label": "What the maps show" });
      node.append(...variants.map((variant, i) => el("button", {
        type: "button", role: "radio", "aria-checked": String(i === this.variant), text: variant.text, title: variant.tip,
        onclick: () => {
          this.variant = i;
          [...node.children].forEach((child, j) => child.setAttribute("aria-checked", String(i === j)));
          this.showMaps();
        },
      })));
      return node;
    }

    dropMaps(keep) {
      for (const [key, view] of this.maps) {
        if (keep.includes(key)) continue;
        view.dispose();
        this.maps.delete(key);
      }
    }

    chart(spec) {
      this.chartNode ||= el("div", { class: "wb-chart", role: "img" });
      this.chartNode.setAttribute("aria-label", spec.alt);
      if (!this.chartObserver) {
        this.chartObserver = new ResizeObserver(() => this.drawChart());
        this.chartObserver.observe(this.chartNode);
      }
      return el("div", { class: "wb-chartbox" }, parts.heading(spec), this.chartNode);
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

    pickStage(stage, block) {
      this.trigger("pick", { stage, keep: true, ...(block ? { block } : {}) });
    }

    overlays() {
      for (const view of this.maps.values()) view.overlay();
    }

    hovered(detail) {
      for (const view of this.maps.values()) {
        view.overlay();
        view.readout(detail.kind === "hover" && detail.source === view ? detail : null);
      }
    }

    /* The focus moved, by a pick here or by the server. */
    focused() {
      if (this.player && !this.payload.empty) this.player.follow();
      this.overlays();
      this.markStage();
    }

    themeChanged() {
      for (const view of this.maps.values()) if (view.spec) view.draw();
      this.drawChart();
      if (this.player && this.player.order) this.player.paintStrip();
    }

    on(detail) {
      if (!this.node.isConnected) return this.dispose();
      if (!this.payload) return;
      if (detail.kind === "hover" || detail.kind === "leave") this.hovered(detail);
      else if (detail.kind === "pick") this.focused();
      else if (detail.kind === "range") {
        for (const view of this.maps.values()) if (view !== detail.source) view.range(detail.range);
      } else if (detail.kind === "theme") this.themeChanged();
      else if (detail.kind === "status") {
        this.status(detail.status);
        this.focused();
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
    if (detail.kind === "theme") style = {};
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

  function assemble() {
    P = window.Plotly;
    const files = window.WorkbenchParts;
    const kit = { P, CONFIG, Panel, el, send, css, themed, number, focus: () => focus, hover: () => hover };
    const page = files.page(kit);
    Object.assign(kit, files.path(), files.strip(kit), files.parts(kit), files.map(kit));
    parts = Object.assign(kit, files.player(kit));
    KINDS = {
      panel: Panel, scanlab: files.lab(kit).ScanLab, datatable: files.table(kit).DataTable,
      story: files.story(kit).Story, photos: page.PhotoPicker, status: page.Status, header: page.Header,
      sidebox: page.Sidebox, tabparts: page.TabParts, ...files.erf(kit).KINDS, ...files.attribution(kit).KINDS, ...files.profiler(kit).KINDS,
      ...files.roofline(kit), ...files.token(kit), ...files.listing(kit),
    };
  }

  window.Workbench = {
    state: () => ({ focus, hover }),
    panels: () => [...panels].filter((p) => p.payload).map((p) => ({ id: p.payload.id, bytes: p.props.value.length })),
    /* What the scan lab's player does now: {step, playing, frames, mode, schemes}, null without one. */
    lab: () => [...panels].map((p) => p.state && p.state()).find(Boolean) || null,
    mount(kind, element, props, trigger, watch) {
      if (!KINDS) assemble();
      const view = new KINDS[kind](element, props, trigger);
      watch("value", () => view.update());
      view.update();
    },
  };
})();
