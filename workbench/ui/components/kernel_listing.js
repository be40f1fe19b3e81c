"use strict";
/* Listings of a compiled kernel side by side, linked by their place in the sources.
 * The server is asked for texts alone; searching, linking and comparing never leave the browser. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.listing = (kit) => {
  const { el } = kit;
  const lines = window.WorkbenchParts.lines(kit);
  const { MACHINE, isSource, stageText, whole, button, coloured, places, load, addressOf, VirtualLines, message } = lines;
  const Compared = window.WorkbenchParts.compared(kit, lines);
  const WIDE = window.matchMedia("(min-width: 1600px)");

  /* One listing with its picker and search. */
  class Pane {
    constructor(panes, n) {
      this.panes = panes;
      this.linked = [];
      this.matches = [];
      this.select = el("select", { class: "wb-select wb-stagepick", "aria-label": `Listing ${n + 1}`, onchange: () => this.pick(...this.select.value.split("|")) });
      this.search = el("input", {
        type: "search", class: "wb-search wb-codesearch", placeholder: "Search", "aria-label": `Search listing ${n + 1}`,
        oninput: () => this.find(), onkeydown: (event) => this.searchKey(event),
      });
      this.count = el("span", { class: "wb-muted wb-codecount", role: "status" });
      this.steps = [button("‹", "Previous match", () => this.step(-1)), button("›", "Next match", () => this.step(1))];
      this.file = button("↓", "Download this stage as a file", () => this.download());
      this.view = new VirtualLines(`Lines of listing ${n + 1}`, (i) => this.line(i), (node, i) => this.mark(node, i));
      this.view.marks = () => this.marks();
      this.hold = el("div", { class: "wb-codehold" });
      this.node = el("div", { class: "wb-codepane" },
        el("div", { class: "wb-codehead" }, this.select, el("span", { class: "wb-codesearchbox" }, this.search, this.count, ...this.steps), this.file), this.hold);
      const lines = this.view.node;
      const lineOf = (event) => { const node = event.target.closest(".wb-codeline"); return node ? Number(node.dataset.i) : null; };
      lines.addEventListener("mousemove", (event) => panes.hover(this, lineOf(event)));
      lines.addEventListener("mouseleave", () => panes.hover(this, null));
      lines.addEventListener("click", (event) => { const i = lineOf(event); if (i !== null && !String(getSelection())) panes.pin(this, i); });
      lines.addEventListener("keydown", (event) => this.key(event));
    }

    /* The subjects (A, B) changed: keep the reader's choice where it still exists. */
    offer(subjects, wanted) {
      const groups = subjects.map((s) => {
        const options = s.stages.map((stage) => el("option", { value: `${s.slot}|${stage}`, text: subjects.length > 1 ? `${s.slot.toUpperCase()} · ${stageText(stage)}` : stageText(stage) }));
        return subjects.length > 1 ? el("optgroup", { label: `${s.slot.toUpperCase()}: ${s.config}, ${s.target}` }, ...options) : options;
      });
      this.select.replaceChildren(...groups.flat());
      const subject = (this.chosen && subjects.find((s) => s.slot === this.chosen.slot)) || subjects.find((s) => s.slot === wanted.slot) || subjects[0];
      const stage = this.chosen ? this.chosen.stage : wanted.stage;
      const there = subject.stages.includes(stage) ? stage : MACHINE.includes(stage) ? subject.stages.find((s) => MACHINE.includes(s)) : wanted.stage;
      this.open(subject, subject.stages.includes(there) ? there : subject.stages[0]);
    }

    pick(slot, stage, line) {
      this.chosen = { slot, stage };
      return this.open(this.panes.subjects.find((s) => s.slot === slot), stage, line);
    }

    async open(subject, stage, line) {
      this.subject = subject;
      this.stage = stage;
      this.select.value = `${subject.slot}|${stage}`;
      this.node.dataset.slot = this.panes.subjects.length > 1 ? subject.slot : "";
      this.node.dataset.stage = stage;
      const url = addressOf(this.panes.root, subject.key, stage);
      if (url === this.url && this.listing) return line === undefined ? undefined : this.view.show(line, true);
      this.url = url;
      this.listing = null;
      this.view.wait();
      this.linked = this.matches = [];
      const slow = setTimeout(() => this.url === url && this.hold.replaceChildren(message(`Loading ${stageText(stage)}`, "")), 120);
      try {
        const listing = await load(url);
        if (this.url !== url) return;
        this.listing = listing;
        this.hold.replaceChildren(this.view.box);
        this.view.node.scrollTop = this.view.node.scrollLeft = 0;
        this.view.fill(listing.lines.length, listing.columns);
        this.find(false);
        this.panes.relink();
        this.view.show(line ?? this.start(), true);
        this.panes.arrived(this);
      } catch (error) {
        if (this.url !== url) return;
        this.url = null;
        this.hold.replaceChildren(message(`${stageText(stage)} could not be fetched`, String(error.message || error), () => this.open(subject, stage, line)));
      } finally { clearTimeout(slow); }
    }

    /* Where a reader wants to begin: machine code at its first loop, a source at the kernel itself. */
    start() {
      const { listing } = this;
      if (listing.loops.length) return listing.loops[0][0] + 8;
      if (listing.file === null) return 0;
      const name = this.subject.config.split("-")[0];
      return Math.max(0, listing.lines.findIndex((text) => text.startsWith(`def ${name}_kernel`)) + 8);
    }

    line(i) {
      const { listing } = this;
      const kind = listing.kind(i);
      return el("div", { class: "wb-codeline", "data-kind": kind || null, "data-loop": listing.inLoop[i] ? "" : null },
        el("span", { class: "wb-lineno", text: String(i + 1) }), coloured(listing, i));
    }

    mark(node, i) {
      const { classList } = node;
      classList.toggle("wb-linked", this.isLinked(i));
      classList.toggle("wb-cursor", this.panes.cursor === this && this.cursorLine === i);
      classList.toggle("wb-pinned", this.panes.pinned === this && this.pinnedLine === i);
      classList.toggle("wb-match", !!this.matchSet && this.matchSet.has(i));
      classList.toggle("wb-matchnow", this.matches[this.current] === i);
    }

    isLinked(i) { return this.linkedSet ? this.linkedSet.has(i) : false; }

    marks() {
      const { listing } = this;
      if (!listing) return [];
      return [
        { colour: "residual", ranges: listing.loops, left: 0, width: 4 },
        { colour: "gate", lines: this.matches, left: 4 },
        { colour: "focus", lines: this.linked },
      ];
    }

    link(lines) {
      this.linked = lines;
      this.linkedSet = lines.length ? new Set(lines) : null;
      this.node.dataset.linked = String(lines.length);
      this.view.later();
    }

    find(moves = true) {
      const needle = this.search.value.trim().toLowerCase();
      const lines = this.listing ? this.listing.lines : [];
      this.matches = [];
      if (needle) lines.forEach((text, i) => { if (text.toLowerCase().includes(needle)) this.matches.push(i); });
      this.matchSet = this.matches.length ? new Set(this.matches) : null;
      const [top] = this.view.range();
      this.current = Math.max(0, this.matches.findIndex((i) => i >= top));
      if (moves && this.matches.length) this.view.show(this.matches[this.current]);
      this.say();
    }

    step(by) {
      const n = this.matches.length;
      if (!n) return;
      this.current = (this.current + by + n) % n;
      this.view.show(this.matches[this.current]);
      this.say();
    }

    say() {
      const n = this.matches.length;
      this.count.textContent = !this.search.value.trim() ? "" : n ? `${whole(this.current + 1)} of ${whole(n)}` : "none";
      for (const node of this.steps) node.disabled = !n;
      this.view.later();
    }

    searchKey(event) {
      if (event.key === "Enter") this.step(event.shiftKey ? -1 : 1);
      if (event.key !== "Escape") return;
      event.stopPropagation(); // it must not clear the page's focus
      this.search.value = "";
      this.find();
    }

    key(event) {
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (by && this.listing) {
        event.preventDefault();
        const [top, bottom] = this.view.range();
        const here = this.panes.cursor === this ? this.cursorLine : Math.floor((top + bottom) / 2);
        const i = Math.max(0, Math.min(this.listing.lines.length - 1, here + by));
        this.view.show(i);
        this.panes.hover(this, i);
      } else if (event.key === "Enter" && this.panes.cursor === this) this.panes.pin(this, this.cursorLine);
    }

    download() {
      if (!this.listing) return;
      const stage = isSource(this.stage) ? (this.listing.file || "source.py").split("/").pop() : this.stage;
      const name = isSource(this.stage) ? stage : `${this.subject.config}.${this.subject.target}.${stage}`;
      const url = URL.createObjectURL(new Blob([`${this.listing.lines.join("\n")}\n`], { type: "text/plain" }));
      el("a", { href: url, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    }
  }

  /* All panes with what links them, and the difference of A and B in their place. */
  class Panes {
    constructor() {
      this.subjects = [];
      this.mode = "listings";
      this.panes = [0, 1].map((n) => new Pane(this, n));
      this.row = el("div", { class: "wb-codepanes" });
      this.where = el("span", { class: "wb-codewhere" });
      this.copy = button("Copy line", "Copy the line that is pinned or under the pointer", () => this.copyLine());
      this.unpin = button("Unpin", "Unpin the line (Esc)", () => this.release());
      this.foot = el("div", { class: "wb-codefoot" }, this.where, this.copy, this.unpin);
      this.legend = el("div", { class: "wb-codelegend" });
      this.compared = new Compared(this);
      this.node = el("div", { class: "wb-codearea" }, this.row, this.foot, this.legend);
      document.addEventListener("keydown", (this.onKey = (event) => {
        if (event.key !== "Escape" || !this.pinned || !this.node.isConnected || event.target.tagName === "INPUT") return;
        if (event.target !== document.body && !this.node.contains(event.target)) return;
        event.stopPropagation(); // the page's focus stays
        this.release();
      }), true);
      WIDE.addEventListener("change", (this.onWide = () => this.layout()));
      this.say();
    }

    update(root, subjects, words) {
      this.root = root;
      this.subjects = subjects;
      this.words = words;
      if (this.pinned && !subjects.some((s) => s.key === this.pinned.subject.key)) this.release();
      if (this.mode === "difference" && subjects.length < 2) this.mode = "listings";
      this.layout();
    }

    setMode(mode) {
      this.mode = mode;
      this.layout();
    }

    layout() {
      if (!this.subjects.length) return;
      const isCompared = this.mode === "difference";
      this.node.dataset.mode = this.mode;
      this.foot.hidden = isCompared;
      if (isCompared) {
        this.row.style.setProperty("--wb-panes", 1);
        this.row.replaceChildren(this.compared.node);
        this.compared.update();
        return;
      }
      const n = WIDE.matches ? 3 : 2;
      while (this.panes.length < n) this.panes.push(new Pane(this, this.panes.length));
      this.row.style.setProperty("--wb-panes", n);
      const shown = this.panes.slice(0, n);
      if (shown.length !== this.row.children.length || shown.some((pane, i) => this.row.children[i] !== pane.node)) this.row.replaceChildren(...shown.map((pane) => pane.node));
      this.shown = shown;
      shown.forEach((pane, i) => pane.offer(this.subjects, this.wanted(i)));
    }

    wanted(i) {
      const [a, b] = this.subjects;
      const machine = (s) => s.stages.find((stage) => MACHINE.includes(stage)) || s.stages[s.stages.length - 1];
      const two = b ? [[a, machine(a)], [b, machine(b)], [a, "source"]] : [[a, "source"], [a, machine(a)], [a, a.stages.includes("ptx") ? "ptx" : "ttgir"]];
      return { slot: two[i][0].slot, stage: two[i][1] };
    }

    arrived() {
      const kinds = new Set();
      for (const pane of this.shown) if (pane.listing) for (const k of pane.listing.kinds) if (k >= 0) kinds.add(pane.listing.classes[k]);
      const items = Object.keys(this.words).filter((key) => kinds.has(key)).map((key) => el("span", { class: "wb-kindkey" }, el("i", { "data-kind": key }), this.words[key]));
      this.legend.replaceChildren(...items, el("span", { class: "wb-kindkey" }, el("i", { class: "wb-loopkey" }), "inside a loop"));
    }

    hover(pane, i) {
      if (i === null && this.cursor !== pane) return;
      if (i !== null && this.cursor === pane && pane.cursorLine === i) return;
      const before = this.cursor;
      this.cursor = i === null ? null : pane;
      pane.cursorLine = i;
      if (before) before.view.later();
      pane.view.later();
      if (!this.pinned) this.relink();
      else this.say();
    }

    pin(pane, i) {
      if (this.pinned === pane && pane.pinnedLine === i) { this.release(); return; }
      if (this.pinned) this.pinned.view.later();
      this.pinned = pane;
      pane.pinnedLine = i;
      this.node.dataset.pinned = "true";
      this.relink();
      for (const other of this.shown) if (other !== pane && other.linked.length) other.view.show(other.view.nearest(other.linked));
      pane.view.node.focus({ preventScroll: true });
      pane.view.later();
    }

    release() {
      const { pinned } = this;
      this.pinned = null;
      this.node.dataset.pinned = "false";
      if (pinned) { pinned.pinnedLine = null; pinned.view.later(); }
      this.relink();
    }

    /* What the reader looks at: the pinned line, else the one under the pointer or the keyboard's. */
    source() {
      const pane = this.pinned || this.cursor;
      const i = pane && (this.pinned ? pane.pinnedLine : pane.cursorLine);
      return pane && pane.listing && i !== null && i !== undefined && i < pane.listing.lines.length ? { pane, i } : null;
    }

    relink() {
      const from = this.source();
      const chain = from && from.pane.listing.chains[from.i];
      for (const pane of this.shown || []) {
        const own = from && pane === from.pane;
        pane.link(from && pane.listing && !own ? pane.listing.at(chain) : []);
      }
      this.say();
    }

    say() {
      const from = this.source();
      this.copy.disabled = !from;
      this.unpin.hidden = !this.pinned;
      if (!from) {
        this.where.replaceChildren(el("span", { class: "wb-muted", text: "Point at a line to light up its origin in the other listings; click to pin it, Esc to let go, ↑ ↓ Enter by keyboard." }));
        return;
      }
      const { listing, subject } = from.pane;
      const kind = listing.kind(from.i);
      const chain = listing.chains[from.i] || [];
      const facts = [`${stageText(listing.stage)} ${whole(from.i + 1)}`, kind && this.words[kind], listing.inLoop[from.i] && "in a loop"].filter(Boolean).join(", ");
      const links = chain.flatMap((id, n) => {
        const { file, line } = places.list[id];
        const stage = subject.stages.find((s) => s === `source:${file}`) || (subject.stages.includes("source") && this.isKernelFile(file) ? "source" : null);
        const text = `${file}:${line}`;
        const node = stage && listing.file === null
          ? el("button", { type: "button", class: "wb-linkbutton wb-place", text, title: `Show line ${line} of ${file}`, onclick: () => this.goTo(from.pane, subject.slot, stage, line - 1) })
          : el("span", { text });
        return n ? [el("span", { class: "wb-muted", text: " called at " }), node] : [node];
      });
      const counts = this.shown.filter((p) => p !== from.pane && p.listing).map((p) => `${whole(p.linked.length)} ${p.linked.length === 1 ? "line" : "lines"} of ${stageText(p.stage)}`);
      this.where.replaceChildren(el("b", { text: facts }), ...(links.length ? links : [el("span", { class: "wb-muted", text: "no place in a source" })]),
        links.length && counts.length ? el("span", { class: "wb-muted", text: `→ ${counts.join(", ")}` }) : "");
    }

    isKernelFile(file) {
      for (const pane of this.shown) if (pane.stage === "source" && pane.listing) return pane.listing.file === file;
      return !file.startsWith("triton/");
    }

    goTo(from, slot, stage, line) {
      const others = this.shown.filter((pane) => pane !== from);
      const pane = others.find((p) => p.stage === stage) || others.find((p) => isSource(p.stage)) || others[0];
      pane.pick(slot, stage, line);
    }

    async copyLine() {
      const from = this.source();
      if (!from) return;
      const text = from.pane.listing.lines[from.i].trim();
      try {
        await navigator.clipboard.writeText(text);
        this.copy.textContent = "Copied";
      } catch { this.copy.textContent = "No clipboard"; }
      setTimeout(() => { this.copy.textContent = "Copy line"; }, 1500);
    }

    themeChanged() {
      for (const pane of this.panes) pane.view.later();
      this.compared.view.later();
    }

    dispose() {
      WIDE.removeEventListener("change", this.onWide);
      document.removeEventListener("keydown", this.onKey, true);
      for (const pane of this.panes) pane.view.dispose();
      this.compared.view.dispose();
    }
  }

  const inspector = window.WorkbenchParts.inspector({ ...kit, Panes });
  return { kerncode: inspector.KernelInspector };
};
