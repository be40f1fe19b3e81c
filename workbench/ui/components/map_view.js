"use strict";
/* One map: a Plotly plot whose axes are input pixels, with a canvas above it for path, hover and focus. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.map = ({ P, el, send, css, themed, number, focus, hover, CONFIG }) => {
  const CLICK_SLOP_PX = 4; // more movement between press and release is a zoom
  const DOUBLE_MS = 300; // between the clicks of a double click
  const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  function decode(z) {
    if (!z || !z.bdata) return null;
    const bytes = Uint8Array.from(atob(z.bdata), (c) => c.charCodeAt(0));
    const [rows, columns] = z.shape.split(",").map(Number);
    const values = z.dtype === "i2" ? new Int16Array(bytes.buffer) : new Float32Array(bytes.buffer);
    return { values, rows, columns };
  }

  class MapView {
    /* `painter`, if set, draws above the picture: paint(g, sx, sy, size) and readout(point). */
    constructor(panel) {
      this.panel = panel;
      this.painter = null;
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
      window.addEventListener("pointerup", (this.release = (event) => {
        const start = pressed;
        pressed = null;
        if (!start) return; // Plotly lays a cover over the page while pressed, so no look at the target
        if (Math.hypot(event.clientX - start[0], event.clientY - start[1]) > CLICK_SLOP_PX) return;
        if (this.point(event)) this.clicked(event);
      }), true);
      this.frame.addEventListener("keydown", (event) => {
        const step = ARROWS[event.key];
        const now = focus();
        if (!step || !now) return;
        event.preventDefault();
        const [h, w] = this.panel.payload.input;
        const y = Math.min(h - 1, Math.max(0, (now.y + step[0] + 0.5) * now.stride));
        const x = Math.min(w - 1, Math.max(0, (now.x + step[1] + 0.5) * now.stride));
        this.panel.pick(y, x);
      });
    }

    /* A double click zooms out. Plotly's cover keeps the browser from telling one, so it is told here; in a
       zoomed map the first click waits for a second one, so that zooming out moves no focus. */
    clicked(event) {
      const point = this.point(event);
      const last = this.lastClick;
      const isSecond = last && event.timeStamp - last.at < DOUBLE_MS && Math.hypot(event.clientX - last.x, event.clientY - last.y) <= CLICK_SLOP_PX;
      this.lastClick = isSecond ? null : { at: event.timeStamp, x: event.clientX, y: event.clientY };
      clearTimeout(this.waiting);
      if (isSecond) return send({ kind: "range", range: null });
      const { range } = this.axes().xaxis;
      const isZoomed = Math.abs(range[1] - range[0]) < this.panel.payload.input[1] - 0.5;
      if (isZoomed) this.waiting = setTimeout(() => this.panel.pick(point.y, point.x), DOUBLE_MS);
      else this.panel.pick(point.y, point.x);
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

    /* In a hidden tab the frame has no width; `resize` draws as soon as it has one. */
    draw() {
      if (!this.frame.clientWidth) return;
      const figure = this.spec.figure;
      const layout = themed(figure.layout);
      for (const image of layout.images || []) {
        if (image.source === "@photo") image.source = this.panel.payload.photo;
      }
      layout.width = this.frame.clientWidth;
      layout.height = this.frame.clientHeight || 200;
      layout.uirevision = this.panel.payload.input.join("x");
      this.isDrawn = true;
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
      if (!this.isDrawn) return this.draw();
      const size = { width: this.frame.clientWidth, height: this.frame.clientHeight };
      if (this.attached) P.relayout(this.plot, size).then(() => this.overlay());
    }

    zoomed(change) {
      if (this.quiet || change["xaxis.range[0]"] === undefined) return this.overlay();
      const axis = this.plot._fullLayout;
      send({ kind: "range", range: { x: axis.xaxis.range.slice(), y: axis.yaxis.range.slice() }, source: this });
    }

    range(range) {
      if (!this.attached) return;
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
      if (!axes || !this.frame.clientWidth) return null;
      const box = this.plot.getBoundingClientRect();
      const x = axes.xaxis.p2d(event.clientX - box.left - axes.xaxis._offset);
      const y = axes.yaxis.p2d(event.clientY - box.top - axes.yaxis._offset);
      const [h, w] = this.panel.payload.input;
      return x >= 0 && y >= 0 && x < w && y < h ? { y, x } : null;
    }

    overlay() {
      const axes = this.axes();
      const { clientWidth: width, clientHeight: height } = this.frame;
      if (!axes || !width) return;
      const ratio = window.devicePixelRatio || 1;
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
      if (this.painter) this.painter.paint(g, sx, sy, { width, height, ratio });
      const now = focus();
      const { token } = this.spec; // a field of its own token: what the picture is of, whatever the focus is
      if (token && token.is_small) this.frameAt(g, sx, sy, token.centre[0] - token.stride / 2, token.centre[1] - token.stride / 2, token.stride, css("--wb-focus"), 1);
      else if (token) this.crosshair(g, sx, sy, axes, token.centre[0], token.centre[1], token.stride);
      else if (now) this.crosshair(g, sx, sy, axes, (now.y + 0.5) * now.stride, (now.x + 0.5) * now.stride, now.stride);
      if (token && now && this.spec.stage === now.stage) this.box(g, sx, sy, now.y * now.stride, now.x * now.stride, now.stride, css("--wb-focus"), 1);
      const at = hover();
      if (at) this.box(g, sx, sy, at.y, at.x, this.spec.cell, css("--wb-hover"), 1.5);
      g.restore();
    }

    /* The cell of a grid that (y, x) lies in. */
    box(g, sx, sy, y, x, cell, colour, width) {
      this.frameAt(g, sx, sy, Math.floor(y / cell) * cell, Math.floor(x / cell) * cell, cell, colour, width);
    }

    frameAt(g, sx, sy, y, x, side, colour, width) {
      const left = sx(x);
      const top = sy(y);
      const w = Math.max(3, sx(x + side) - left);
      const h = Math.max(3, sy(y + side) - top);
      g.lineWidth = width + 2;
      g.strokeStyle = "rgba(10,15,25,.75)";
      g.strokeRect(left, top, w, h);
      g.lineWidth = width;
      g.strokeStyle = colour;
      g.strokeRect(left, top, w, h);
    }

    crosshair(g, sx, sy, axes, y, x, stride) {
      const colour = css("--wb-focus");
      g.strokeStyle = colour;
      g.globalAlpha = 0.55;
      g.lineWidth = 1;
      const gap = Math.abs(sx(stride) - sx(0)) * 0.5 + 3;
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
      this.frameAt(g, sx, sy, y - stride / 2, x - stride / 2, stride, colour, 2);
    }

    readout(point) {
      if (!point || !this.spec) return void (this.tip.hidden = true);
      const cell = this.spec.cell;
      const stage = this.spec.stage || this.panel.payload.stage;
      let text = `stage ${stage} · row ${Math.floor(point.y / cell)}, column ${Math.floor(point.x / cell)}`;
      if (this.spec.read && this.grid) text += ` · ${this.value(this.spec.read, point)}`;
      if (this.painter) text += this.painter.readout(point);
      this.tip.textContent = text;
      this.tip.hidden = false;
    }

    value(read, point) {
      const row = Math.min(this.grid.rows - 1, Math.floor(point.y / read.cell));
      const column = Math.min(this.grid.columns - 1, Math.floor(point.x / read.cell));
      let value = this.grid.values[row * this.grid.columns + column];
      if (Number.isNaN(value)) return read.none || "n/a";
      const isFloor = read.floor !== undefined && value <= read.floor + 1e-5;
      value *= read.factor || 1;
      if (read.power === 10) value = 10 ** value;
      if (read.power === 2) value = Math.sign(value) * value * value;
      if (read.power === -2) value = -Math.sign(value) * value * value;
      if (read.exponent) value **= read.exponent;
      const text = read.whole ? value.toLocaleString("en") : number(value);
      return `${isFloor ? "≤ " : ""}${text} ${read.unit}`;
    }

    dispose() {
      this.observer.disconnect();
      clearTimeout(this.waiting);
      window.removeEventListener("pointerup", this.release, true);
      if (this.attached) P.purge(this.plot);
    }
  }

  return { MapView };
};
