"use strict";
/* Scan paths on a canvas: order tables decoded, paths painted from cached layers.
 *
 * A path is drawn once into a faint layer (all of it) and step by step into a strong one (what is read so far), so a
 * frame of the playback costs the new steps and two copies. Snapshots of the strong layer make a step backwards cheap.
 * Shared by the overview's player, the lab and the story.
 */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.path = () => {
  const GROUPS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]; // Okabe-Ito, as in figures/theme.py
  const SHADES = [0, 0.5, -0.4]; // groups 5-8 lighter, 9-12 darker, then the same dashed
  const MAX_DRAWN = 40000; // steps of a path; more would not be told apart and would stutter
  const TRAIL_STEPS = 6; // the latest steps are drawn strong, jumps included
  const SNAPSHOTS = 8; // of a long path, evenly spaced
  const LONG_PATH = 3000; // steps, all groups; shorter ones are drawn anew in a few milliseconds
  const HEAD_PX = [3, 6];

  /* Inverse of figures/scan.py: encode_order. */
  function decodeOrder(scheme) {
    const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const length = Math.ceil(scheme.length / (scheme.every || 1));
    const sequences = [];
    for (const item of scheme.sequences) {
      if (item.reverse_of !== undefined) {
        sequences.push(sequences[item.reverse_of].slice().reverse());
        continue;
      }
      const ids = new Int32Array(length);
      if (item.runs) {
        let id = (ids[0] = item.first);
        for (let r = 0, at = 1; r < item.runs.length; r += 2) {
          for (let n = 0; n < item.runs[r + 1]; n++) ids[at++] = id += item.runs[r];
        }
      } else if (item.steps) {
        const bytes = bytesOf(item.data);
        const mask = (1 << item.bits) - 1;
        ids[0] = item.first;
        for (let t = 1, bit = 0; t < length; t++, bit += item.bits) {
          const pair = bytes[bit >> 3] | ((bytes[(bit >> 3) + 1] || 0) << 8);
          ids[t] = ids[t - 1] + item.steps[(pair >> (bit & 7)) & mask];
        }
      } else {
        const bytes = bytesOf(item.data);
        for (let t = 0; t < length; t++) {
          let id = 0;
          for (let b = item.bytes - 1; b >= 0; b--) id = id * 256 + bytes[t * item.bytes + b];
          ids[t] = id + item.offset;
        }
      }
      sequences.push(ids);
    }
    return sequences;
  }

  function shade(hex, amount) {
    const target = amount > 0 ? 255 : 0;
    const mix = (i) => {
      const value = parseInt(hex.slice(i, i + 2), 16);
      return Math.round(value + (target - value) * Math.abs(amount));
    };
    return `rgb(${mix(1)}, ${mix(3)}, ${mix(5)})`;
  }

  function groupStyle(group) {
    const cycle = Math.floor(group / GROUPS.length);
    return {
      colour: shade(GROUPS[group % GROUPS.length], SHADES[cycle % SHADES.length]),
      dash: Math.floor(cycle / SHADES.length) % 2 ? [2, 2] : [],
    };
  }

  function layer(width, height, ratio) {
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.lineCap = "round";
    return { canvas, g };
  }

  /* The order of one scheme: tokens, and which steps are jumps (farther than the order's shortest move). */
  class Order {
    constructor(scheme) {
      Object.assign(this, scheme);
      this.every = scheme.every || 1;
      this.tables = decodeOrder(scheme);
      this.styles = this.tables.map((_, k) => groupStyle(k));
      this.visitsTwice = this.tables.length * this.tables[0].length * this.every > 1.5 * this.height * this.width;
      this.jumps = this.tables.map((ids) => this.findJumps(ids));
    }

    /* Number of a group as readers count: from 1, those left out included. */
    number(group) {
      return this.groups ? this.groups[group] : group + 1;
    }

    findJumps(ids) {
      const far = this.every === 1 ? this.spacing : Infinity; // of a thinned table the moves are not known
      const jumps = new Uint8Array(ids.length);
      let before = -1;
      for (let t = 0; t < ids.length; t++) {
        if (ids[t] < 0) continue;
        if (before >= 0) {
          const dy = Math.abs(Math.floor(ids[t] / this.width) - Math.floor(before / this.width));
          const dx = Math.abs((ids[t] % this.width) - (before % this.width));
          jumps[t] = Math.max(dy, dx) > far ? 1 : 0;
        }
        before = ids[t];
      }
      return jumps;
    }

    /* Entry of the table that holds 1-based `step`. */
    entry(step) {
      return Math.floor((step - 1) / this.every);
    }

    at(group, step) {
      return step >= 1 && step <= this.length ? this.tables[group][this.entry(step)] : undefined;
    }

    /* Every visit of token (y, x): [{group, step}], both from 0. */
    visits(y, x) {
      const id = y * this.width + x;
      const found = [];
      if (y < 0 || x < 0 || y >= this.height || x >= this.width) return found;
      this.tables.forEach((ids, group) => {
        for (let t = ids.indexOf(id); t >= 0; t = ids.indexOf(id, t + 1)) found.push({ group, step: t * this.every });
      });
      return found;
    }

    centre(id) {
      if (id === undefined || id < 0) return null;
      return { y: (Math.floor(id / this.width) + 0.5) * this.stride, x: ((id % this.width) + 0.5) * this.stride };
    }
  }

  class PathPainter {
    constructor(order) {
      this.order = order;
      this.key = "";
    }

    /* Canvas positions of all tokens for this zoom; layers start anew. */
    place(sx, sy, width, height, ratio) {
      const o = this.order;
      const key = [sx(0), sx(o.stride), sy(0), sy(o.stride), width, height, ratio].join();
      if (key === this.key) return;
      this.key = key;
      this.cell = Math.abs(sx(o.stride) - sx(0));
      this.edges = [sx(0), sx(o.width * o.stride), sy(0), sy(o.height * o.stride)];
      const count = o.tables.length;
      const apart = o.visitsTwice ? Math.min(0.17, 0.62 / count) * this.cell : 0;
      const share = Math.min(1, (width * height) / (o.width * o.height * this.cell * this.cell));
      this.thin = Math.max(1, Math.ceil((count * o.tables[0].length * share) / MAX_DRAWN));
      this.px = [];
      this.py = [];
      o.tables.forEach((ids, k) => {
        const shift = (k - (count - 1) / 2) * apart;
        const px = new Float32Array(ids.length);
        const py = new Float32Array(ids.length);
        for (let t = 0; t < ids.length; t++) {
          const id = ids[t];
          px[t] = id < 0 ? NaN : sx(((id % o.width) + 0.5) * o.stride) + shift;
          py[t] = id < 0 ? NaN : sy((Math.floor(id / o.width) + 0.5) * o.stride) + shift;
        }
        this.px.push(px);
        this.py.push(py);
      });
      this.faint = layer(width, height, ratio);
      this.strong = layer(width, height, ratio);
      this.drawn = 0;
      this.snapshots = [];
      const { length } = o.tables[0];
      this.snapshotEvery = count * length > LONG_PATH ? Math.ceil(length / SNAPSHOTS) : Infinity;
      this.draw(this.faint.g, 0, length);
    }

    /* Bring the strong layer to the first `to` entries. */
    advance(to, width, height, ratio) {
      if (to < this.drawn) {
        const at = Math.min(this.snapshots.length, Math.floor(to / this.snapshotEvery));
        this.strong.g.clearRect(0, 0, width, height);
        if (at > 0) this.strong.g.drawImage(this.snapshots[at - 1], 0, 0, width, height);
        this.drawn = at > 0 ? at * this.snapshotEvery : 0;
      }
      while (this.drawn < to) {
        const next = (Math.floor(this.drawn / this.snapshotEvery) + 1) * this.snapshotEvery;
        const until = Math.min(to, Number.isFinite(next) ? next : to);
        this.draw(this.strong.g, this.drawn, until);
        this.drawn = until;
        if (until !== next || this.snapshots.length >= until / this.snapshotEvery) continue;
        const copy = layer(width, height, ratio);
        copy.g.drawImage(this.strong.canvas, 0, 0, width, height);
        this.snapshots.push(copy.canvas);
      }
    }

    /* Reads of entries [from, to) of every group: neighbours solid, jumps thin, tokens as dots. */
    draw(g, from, to) {
      const o = this.order;
      const thin = this.thin;
      for (let k = 0; k < o.tables.length; k++) {
        const [px, py, jumps] = [this.px[k], this.py[k], o.jumps[k]];
        const near = new Path2D();
        const far = new Path2D();
        const dots = new Path2D();
        const radius = Math.max(1.2, this.cell * 0.12);
        // The latest token drawn before, so that a path goes on across pads and thinned steps.
        let before = Math.floor((from - 1) / thin) * thin;
        while (before >= 0 && Number.isNaN(px[before])) before -= thin;
        for (let t = Math.ceil(from / thin) * thin; t < to; t += thin) {
          if (Number.isNaN(px[t])) continue;
          if (before >= 0) {
            let isJump = 0;
            for (let s = before + 1; s <= t; s++) isJump |= jumps[s];
            const path = isJump ? far : near;
            path.moveTo(px[before], py[before]);
            path.lineTo(px[t], py[t]);
          }
          if (this.cell > 5) {
            dots.moveTo(px[t] + radius, py[t]);
            dots.arc(px[t], py[t], radius, 0, 2 * Math.PI);
          }
          before = t;
        }
        const { colour, dash } = o.styles[k];
        g.strokeStyle = g.fillStyle = colour;
        g.lineWidth = Math.max(0.9, Math.min(2.2, this.cell * 0.16));
        g.setLineDash(dash);
        g.stroke(near);
        g.setLineDash([]);
        g.globalAlpha = o.visitsTwice || o.tables.length > 1 ? 0.22 : 0.3;
        g.lineWidth = 0.7;
        g.stroke(far);
        g.globalAlpha = 1;
        if (this.cell > 5) g.fill(dots);
      }
    }

    /* The path up to 1-based `step` (0: nothing yet) over the faint whole; `size` is {width, height, ratio}. */
    paint(g, sx, sy, step, { width, height, ratio }) {
      this.place(sx, sy, width, height, ratio);
      const o = this.order;
      const to = step <= 0 ? 0 : o.entry(step) + 1;
      this.advance(to, width, height, ratio);
      if (step < o.length) {
        g.globalAlpha = 0.22;
        g.drawImage(this.faint.canvas, 0, 0, width, height);
      }
      g.globalAlpha = 0.9;
      g.drawImage(this.strong.canvas, 0, 0, width, height);
      g.globalAlpha = 1;
      if (to > 0 && step < o.length) for (let k = 0; k < o.tables.length; k++) this.head(g, k, to - 1);
    }

    /* The token read now, with the latest steps; a pad is a hollow ring at the edge where the path left the map. */
    head(g, k, t) {
      const [px, py] = [this.px[k], this.py[k]];
      const { colour } = this.order.styles[k];
      const radius = Math.max(HEAD_PX[0], Math.min(HEAD_PX[1], this.cell * 0.42)) * (this.order.tables.length > 8 ? 0.6 : 1);
      g.strokeStyle = colour;
      const near = new Path2D();
      const far = new Path2D();
      let before = -1;
      for (let s = Math.max(0, t - TRAIL_STEPS); s <= t; s++) {
        if (Number.isNaN(px[s])) continue;
        const path = this.order.jumps[k][s] ? far : near;
        if (before >= 0) path.moveTo(px[before], py[before]);
        if (before >= 0) path.lineTo(px[s], py[s]);
        before = s;
      }
      g.lineWidth = Math.max(1.6, Math.min(3, this.cell * 0.24));
      g.stroke(near);
      g.lineWidth = 1.1;
      g.stroke(far);
      const isPad = Number.isNaN(px[t]);
      const place = isPad ? this.padMark(px, py, t) : [px[t], py[t]];
      if (!place) return;
      const [x, y] = place;
      g.beginPath();
      g.arc(x, y, isPad ? radius + 1 : radius, 0, 2 * Math.PI);
      g.setLineDash(isPad ? [2, 2] : []);
      g.fillStyle = "#fff";
      if (!isPad) g.fill();
      g.lineWidth = 2;
      g.stroke();
      g.setLineDash([]);
    }

    padMark(px, py, t) {
      let s = t;
      while (s >= 0 && Number.isNaN(px[s])) s -= 1;
      if (s < 0) for (s = t; s < px.length - 1 && Number.isNaN(px[s]);) s += 1;
      if (Number.isNaN(px[s])) return null; // a sequence without a token of this map
      const [left, right, top, bottom] = this.edges;
      const gaps = [px[s] - left, right - px[s], py[s] - top, bottom - py[s]];
      const side = gaps.indexOf(Math.min(...gaps));
      return [[left, py[s]], [right, py[s]], [px[s], top], [px[s], bottom]][side];
    }
  }

  return { Order, PathPainter, decodeOrder };
};
