"use strict";
/* Lines of a listing: fetched and kept, coloured, linked to places in the sources, and only the visible ones in the page. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.lines = (kit) => {
  const { el, css } = kit;
  const LINE = 17; // px, as in kernel_listing.css
  const SPARE = 12; // lines drawn above and below what is visible
  const KEPT = 24; // listings in memory
  const STAGES = { source: "Source", ttir: "TTIR", ttgir: "TTGIR", llir: "LLVM IR", ptx: "PTX", sass: "SASS", amdgcn: "AMDGCN" };
  const MACHINE = ["sass", "amdgcn"];
  const isSource = (stage) => stage.startsWith("source");
  const stageText = (stage) => STAGES[stage] || `Source ${stage.split("/").pop()}`;
  const whole = (n) => n.toLocaleString("en");
  const button = (text, tip, onclick, more = {}) => el("button", { type: "button", class: "wb-button", text, title: tip, "aria-label": tip, onclick, ...more });

  /* Quiet colours: groups c comment, o operation, r register or value, k keyword, s string. */
  const SYNTAX = {
    source: /(?<c>#.*$)|(?<s>"[^"]*"|'[^']*')|(?<k>\b(?:def|return|if|elif|else|for|while|in|range|import|from|and|or|not|is|None|True|False|lambda|assert)\b)|(?<o>\b(?:tl|triton)\.\w+(?:\.\w+)*)/g,
    mlir: /(?<c>\/\/.*$)|(?<s>"[^"]*")|(?<o>\b(?:tt|ttg|ttng|arith|scf|math|cf|ub|gpu|llvm|amdg|amdgpu)\.[\w.]+)|(?<r>%[\w-]+(?:#\d+)?|#\w+)/g,
    llir: /(?<c>;.*$)|(?<s>"[^"]*")|(?<r>[%@][\w.$-]+)|(?<o>(?<== )(?:tail call|[a-z]\w*)|^\s+(?:br|ret|store|call|tail call|switch)\b)|(?<k>![\w.]+)/g,
    ptx: /(?<c>\/\/.*$)|(?<s>"[^"]*")|(?<r>%[\w.]+)|(?<k>^\s*\.[\w.]+)|(?<o>(?<=^\s*(?:@!?%p\d+\s+)?)[a-z]\w*(?:\.[\w:]+)*)/g,
    sass: /(?<c>\/\*.*?\*\/|\/\/.*$)|(?<r>\b(?:UR|R|UP|P|SR|SB|B)(?:\d+|Z|T)(?:\.reuse)?\b|\bSR_\w+(?:\.\w)?)|(?<o>(?<=\*\/\s+(?:@!?U?P\w+\s+)?)[A-Z][A-Z0-9]*(?:\.[A-Z0-9_]+)*)|(?<k>^\s*\.[\w.]+)/g,
    amdgcn: /(?<c>;.*$)|(?<r>\b[vsa](?:\d+|\[\d+:\d+\])|\b(?:vcc|exec|scc|m0)\b)|(?<o>^\s+[a-z]+_\w+)|(?<k>^\s*\.[\w.]+)/g,
  };
  const syntaxOf = (stage) => SYNTAX[isSource(stage) ? "source" : stage === "ttir" || stage === "ttgir" ? "mlir" : stage];

  /* SASS is set wide; files and copies keep it. */
  const narrow = (text) => text.replace(/^\s+(\/\*[0-9a-f]+\*\/)\s+/, "$1  ");

  function coloured(listing, i) {
    const { stage } = listing;
    const text = stage === "sass" ? narrow(listing.lines[i]) : listing.lines[i];
    const node = el("span", { class: "wb-codetext" });
    if (listing.inText && listing.inText[i]) {
      node.append(el("span", { class: "wb-syn-s", text }));
      return node;
    }
    const pattern = syntaxOf(stage);
    let done = 0;
    if (pattern && text.length < 2000) for (const match of text.matchAll(pattern)) {
      if (match.index > done) node.append(text.slice(done, match.index));
      const kind = Object.keys(match.groups).find((key) => match.groups[key] !== undefined);
      node.append(el("span", { class: `wb-syn-${kind}`, text: match[0] }));
      done = match.index + match[0].length;
    }
    if (done < text.length) node.append(text.slice(done));
    return node;
  }

  /* Places in sources, numbered for the whole page, so that lines of any two listings compare quickly. */
  const places = { ids: new Map(), list: [] };
  function placeId(file, line) {
    const key = `${file}:${line}`;
    let id = places.ids.get(key);
    if (id === undefined) {
      places.ids.set(key, (id = places.list.length));
      places.list.push({ file, line });
    }
    return id;
  }

  /* Lines of a Python source that are part of a docstring. */
  function textLines(lines) {
    let isInside = false;
    return lines.map((line) => {
      const marks = line.split('"""').length - 1;
      const found = isInside || marks > 0;
      if (marks % 2) isInside = !isInside;
      return found;
    });
  }

  class Listing {
    constructor(answer) {
      this.stage = answer.stage;
      this.lines = answer.text.split("\n");
      this.kinds = answer.kinds || [];
      this.classes = answer.classes || [];
      this.hidden = answer.hidden || 0;
      const n = this.lines.length;
      this.inLoop = new Uint8Array(n);
      this.loops = answer.loops || [];
      for (const [first, last] of this.loops) this.inLoop.fill(1, first, last + 1);
      const own = isSource(this.stage) ? this.stage.slice(7) || (answer.files || [])[0] || "" : null;
      this.file = own;
      this.inText = own === null ? null : textLines(this.lines);
      this.chains = this.lines.map((_, i) => {
        if (own !== null) return [placeId(own, i + 1)];
        const frames = (answer.frames || [])[i];
        if (!frames) return null;
        const chain = [];
        for (let k = 0; k < frames.length; k += 2) chain.push(placeId(answer.files[frames[k]], frames[k + 1]));
        return chain;
      });
      this.columns = this.lines.reduce((most, line) => Math.max(most, line.length + 7 * (line.split("\t").length - 1)), 0);
    }

    index() {
      if (this.inner) return;
      this.inner = new Map();
      this.any = new Map();
      const add = (map, id, i) => { const list = map.get(id); if (!list) map.set(id, [i]); else if (list[list.length - 1] !== i) list.push(i); };
      this.chains.forEach((chain, i) => {
        if (!chain) return;
        add(this.inner, chain[0], i);
        for (const id of chain) add(this.any, id, i);
      });
    }

    /* Lines at a place: those with the same innermost place, else with any frame in common, innermost first. */
    at(chain) {
      if (!chain) return [];
      this.index();
      const same = this.inner.get(chain[0]);
      if (same) return same;
      for (const id of chain) if (this.any.has(id)) return this.any.get(id);
      return [];
    }

    kind(i) {
      const k = this.kinds[i];
      return k === undefined || k < 0 ? "" : this.classes[k];
    }
  }

  const kept = new Map(); // address -> promise of a Listing
  function load(url) {
    const old = kept.get(url);
    kept.delete(url);
    const found = old || fetch(url).then(async (response) => {
      if (!response.ok) throw new Error((await response.text()).slice(0, 400) || `the server answered ${response.status}`);
      return new Listing(await response.json());
    });
    if (!old) found.catch(() => kept.delete(url));
    kept.set(url, found); // last in the map: used last
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
    return found;
  }

  const addressOf = (root, key, stage) => `${root}${key.split("/").map(encodeURIComponent).join("/")}/${encodeURIComponent(stage)}.json`;

  /* A list of which only visible lines are in the page. `draw(i)` makes line i, `mark(node, i)` sets its classes. */
  class VirtualLines {
    constructor(label, draw, mark) {
      this.draw = draw;
      this.mark = mark;
      this.count = 0;
      this.live = new Map();
      this.space = el("div", { class: "wb-codespace" });
      this.node = el("div", { class: "wb-code", tabindex: "0", role: "region", "aria-label": label }, this.space);
      this.ruler = el("canvas", { class: "wb-coderuler", "aria-hidden": "true", title: "Click to go there" });
      this.box = el("div", { class: "wb-codebox" }, this.node, this.ruler);
      this.node.addEventListener("scroll", () => this.later());
      this.ruler.addEventListener("click", (event) => this.show(Math.floor((event.offsetY / this.ruler.clientHeight) * this.count), true));
      this.observer = new ResizeObserver(() => this.later());
      this.observer.observe(this.node);
    }

    /* Until the next `fill` nothing is drawn: what the lines are made of is on its way. */
    wait() {
      this.isWaiting = true;
    }

    fill(count, columns) {
      this.isWaiting = false;
      this.count = count;
      for (const node of this.live.values()) node.remove();
      this.live.clear();
      this.space.style.height = `${LINE * count + 4}px`;
      this.space.style.setProperty("--wb-digits", String(Math.max(3, String(count).length)));
      this.space.style.minWidth = `calc(${columns}ch + 70px)`;
      this.paint();
    }

    later() {
      if (this.frame) return;
      this.frame = requestAnimationFrame(() => { this.frame = 0; this.paint(); });
    }

    range() {
      const first = Math.floor(this.node.scrollTop / LINE);
      return [first, Math.min(this.count - 1, first + Math.ceil(this.node.clientHeight / LINE))];
    }

    paint() {
      if (this.isWaiting) return;
      const [top, bottom] = this.range();
      const [first, last] = [Math.max(0, top - SPARE), Math.min(this.count - 1, bottom + SPARE)];
      for (const [i, node] of this.live) if (i < first || i > last) { node.remove(); this.live.delete(i); }
      const [above, below] = [[], []]; // lines stand in the page in their order, for selections and screen readers
      const old = Math.min(...this.live.keys());
      for (let i = first; i <= last; i += 1) {
        let node = this.live.get(i);
        if (!node) {
          node = this.draw(i);
          node.style.top = `${LINE * i}px`;
          node.dataset.i = i;
          this.live.set(i, node);
          (i < old && old !== Infinity ? above : below).push(node);
        }
        this.mark(node, i);
      }
      this.space.prepend(...above);
      this.space.append(...below);
      this.paintRuler();
    }

    /* Marks of the whole list beside it: [[colour, lines or ranges, height], …]. */
    paintRuler() {
      const [w, h] = [this.ruler.clientWidth, this.ruler.clientHeight];
      if (!w || !h) return;
      const ratio = window.devicePixelRatio || 1;
      [this.ruler.width, this.ruler.height] = [w * ratio, h * ratio];
      const context = this.ruler.getContext("2d");
      context.scale(ratio, ratio);
      const y = (i) => (i / Math.max(1, this.count)) * h;
      for (const { colour, lines, ranges, left = 0, width = w } of this.marks ? this.marks() : []) {
        context.fillStyle = css(`--wb-${colour}`) || colour;
        for (const [a, b] of ranges || []) context.fillRect(left, y(a), width, Math.max(1, y(b + 1) - y(a)));
        for (const i of lines || []) context.fillRect(left, y(i), width, 2);
      }
      const [top, bottom] = this.range();
      context.strokeStyle = css("--wb-muted");
      context.globalAlpha = .5;
      context.strokeRect(.5, y(top) + .5, w - 1, Math.max(4, y(bottom + 1) - y(top)) - 1);
    }

    show(i, always = false) {
      const [top, bottom] = this.range();
      if (!always && i > top && i < bottom - 1) return;
      this.node.scrollTop = Math.max(0, LINE * i - this.node.clientHeight / 2);
      this.paint();
    }

    nearest(lines) {
      const [top, bottom] = this.range();
      const middle = (top + bottom) / 2;
      return lines.reduce((best, i) => (Math.abs(i - middle) < Math.abs(best - middle) ? i : best), lines[0]);
    }

    dispose() { this.observer.disconnect(); }
  }

  function message(title, text, retry) {
    return el("div", { class: "wb-codemessage", role: "status" }, el("b", { text: title }), text ? el("p", { text }) : null,
      retry ? button("Try again", "Fetch the listing again", retry) : null);
  }

  return { MACHINE, isSource, stageText, whole, button, coloured, places, load, addressOf, VirtualLines, message };
};
