"use strict";
/* The 1-D strip under a map: the photo's patches in the order in which one group reads them. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.strip = ({ css }) => {
  /* What one group reads, in order: photo patches around the current step, and where that lies in the whole. */
  class Strip {
    constructor(canvas, cell = 18) {
      this.canvas = canvas;
      this.cell = cell;
      this.patch = cell; // side of a patch; below it the group's colour and the whole sequence
    }

    set(order, photo, input) {
      this.order = order;
      this.photo = photo;
      this.input = input;
      this.key = "";
    }

    /* Table entry under a pointer position, in canvas px. */
    entryAt(x) {
      return this.start + Math.floor(x / this.cell);
    }

    paint(group, step) {
      const width = this.canvas.clientWidth;
      const { photo, order } = this;
      if (!width || !order || !photo.complete || !photo.naturalWidth) return;
      const ratio = window.devicePixelRatio || 1;
      const ids = order.tables[group];
      const now = step > 0 && step < order.length ? order.entry(step) : -1;
      const read = step <= 0 ? 0 : order.entry(step) + 1;
      const shown = Math.floor(width / this.cell);
      this.start = Math.max(0, Math.min(ids.length - shown, now - Math.floor(shown / 2)));
      const key = [group, this.start, read, width, ratio, css("--wb-line")].join();
      if (key === this.key) return;
      this.key = key;
      const height = this.canvas.clientHeight;
      if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
        this.canvas.width = Math.round(width * ratio);
        this.canvas.height = Math.round(height * ratio);
      }
      const g = this.canvas.getContext("2d");
      g.setTransform(ratio, 0, 0, ratio, 0, 0);
      g.clearRect(0, 0, width, height);
      const { colour } = order.styles[group];
      const line = css("--wb-muted");
      for (let i = 0; i < shown && this.start + i < ids.length; i++) {
        const t = this.start + i;
        g.globalAlpha = t < read ? 1 : 0.35;
        this.drawPatch(g, ids[t], i * this.cell, line);
        g.fillStyle = colour;
        // The bar under neighbours is unbroken; a jump leaves a gap.
        const joins = t + 1 < ids.length && ids[t + 1] >= 0 && !order.jumps[group][t + 1] && i + 1 < shown;
        const bar = t === now ? 5 : 2;
        if (ids[t] >= 0) g.fillRect(i * this.cell, this.patch + 1, joins ? this.cell : this.cell - 5, bar);
      }
      g.globalAlpha = 1;
      if (height < this.patch + 10 || ids.length <= shown) return;
      const y = height - 2;
      g.fillStyle = css("--wb-line");
      g.fillRect(0, y, width, 2);
      g.fillStyle = colour;
      g.fillRect(0, y, (width * read) / ids.length, 2);
      g.fillStyle = css("--wb-ink");
      const window_ = Math.max(3, (width * shown) / ids.length);
      g.fillRect(Math.min(width - window_, (width * this.start) / ids.length), y - 1, window_, 3);
    }

    drawPatch(g, id, x, line) {
      const side = this.patch - 1;
      if (id < 0) {
        g.strokeStyle = line;
        g.lineWidth = 1;
        g.setLineDash([2, 2]);
        g.strokeRect(x + 1, 1, side - 2, side - 2);
        g.setLineDash([]);
        return;
      }
      const { order, photo } = this;
      const s = (order.stride * photo.naturalWidth) / this.input[1];
      const left = (id % order.width) * s;
      const top = Math.floor(id / order.width) * s;
      const [w, h] = [Math.min(s, photo.naturalWidth - left), Math.min(s, photo.naturalHeight - top)];
      g.drawImage(photo, left, top, Math.max(1, w), Math.max(1, h), x, 0, side, side);
    }
  }

  return { Strip };
};
