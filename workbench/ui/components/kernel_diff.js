"use strict";
/* Lines of one listing beside those of another: Myers' shortest edit, and where that is too long, patience: the lines
 * that each has once are the fixed points between which it goes on. Bounded in time. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.diff = () => {
  const MOST_EDITS = 3000; // of one stretch; the numbers kept for its trace are the square of this
  const SMALL = 400; // lines of a stretch that is aligned even when the time is over
  const BUDGET_MS = 900;

  /* What two lines are compared by: without addresses, and without the names of registers, values and labels. */
  const NAMES = [
    [/\/\*[0-9a-f]{4,}\*\//g, ""], // address of a SASS instruction
    [/\b(U?R|U?P|B|SB)\d+\b(\.reuse)?/g, "$1#"], // SASS registers, predicates, barriers
    [/%[\w.$-]+(#\d+)?/g, "%"], // values of TTIR, LLVM IR, PTX
    [/\b([vsa])(\d+\b|\[\d+:\d+\])/g, "$1#"], // AMD registers
    [/\$?\.?L(BB|tmp|_x_|CPI|func_\w*?)[\d_]+/g, "L#"],
    [/[#!]\w*\d+\b/g, "#"], // attributes and metadata
    [/`\(\S+?\)/g, "`()"],
    [/\b0x[0-9a-f]+(?= ?;?$)/g, "0x#"], // target of a jump
  ];
  function plain(line, ignoresNames) {
    let text = line.trim();
    if (ignoresNames) for (const [pattern, by] of NAMES) text = text.replace(pattern, by);
    return text.replace(/\s+/g, " ").trim();
  }

  /* Longest rising run of `pairs` [i, j] by j; i rises already. */
  function rising(pairs) {
    const ends = [];
    const before = new Array(pairs.length).fill(-1);
    pairs.forEach(([, j], n) => {
      let [low, high] = [0, ends.length];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (pairs[ends[middle]][1] < j) low = middle + 1;
        else high = middle;
      }
      if (low) before[n] = ends[low - 1];
      ends[low] = n;
    });
    const out = [];
    for (let n = ends.length ? ends[ends.length - 1] : -1; n >= 0; n = before[n]) out.push(pairs[n]);
    return out.reverse();
  }

  /* [[i, j], …] equal lines of a and b, both rising, and how many lines were left unaligned because it took too long. */
  function align(a, b, ignoresNames, budget = BUDGET_MS) {
    const numbers = new Map();
    const read = (lines) => Int32Array.from(lines, (line) => {
      const text = plain(line, ignoresNames);
      let n = numbers.get(text);
      if (n === undefined) numbers.set(text, (n = numbers.size));
      return n;
    });
    const [x, y] = [read(a), read(b)];
    const until = performance.now() + budget;
    const pairs = [];
    let unaligned = 0;

    function anchors(a0, a1, b0, b1) {
      const seen = new Map(); // line -> [times in a, place, times in b, place]
      for (let i = a0; i < a1; i += 1) {
        const entry = seen.get(x[i]);
        if (entry) entry[0] += 1;
        else seen.set(x[i], [1, i, 0, -1]);
      }
      for (let j = b0; j < b1; j += 1) {
        const entry = seen.get(y[j]);
        if (entry) { entry[2] += 1; entry[3] = j; }
      }
      const unique = [];
      for (const [na, i, nb, j] of seen.values()) if (na === 1 && nb === 1) unique.push([i, j]);
      return rising(unique);
    }

    /* Greedy shortest edit of a stretch; false where it has more than MOST_EDITS edits or the time is over. */
    function myers(a0, a1, b0, b1) {
      const [n, m] = [a1 - a0, b1 - b0];
      const most = Math.min(n + m, MOST_EDITS);
      if (Math.abs(n - m) > most) return false;
      const reach = new Int32Array(2 * most + 3);
      const trace = [];
      const at = (k) => k + most + 1;
      for (let d = 0; d <= most; d += 1) {
        if (!(d & 31) && n + m > SMALL && performance.now() > until) return false;
        trace.push(reach.slice(at(-d - 1), at(d + 1) + 1));
        for (let k = -d; k <= d; k += 2) {
          let i = k === -d || (k !== d && reach[at(k - 1)] < reach[at(k + 1)]) ? reach[at(k + 1)] : reach[at(k - 1)] + 1;
          while (i < n && i - k < m && x[a0 + i] === y[b0 + i - k]) i += 1;
          reach[at(k)] = i;
          if (i < n || i - k < m) continue;
          const found = [];
          let [p, q] = [n, m];
          for (let e = d; e > 0; e -= 1) {
            const old = trace[e]; // of k from -e - 1 to e + 1
            const here = p - q;
            const from = here === -e || (here !== e && old[here - 1 + e + 1] < old[here + 1 + e + 1]) ? here + 1 : here - 1;
            const start = old[from + e + 1];
            while (p > start && q > start - from && p > 0 && q > 0 && x[a0 + p - 1] === y[b0 + q - 1]) found.push([a0 + --p, b0 + --q]);
            [p, q] = [start, start - from];
          }
          while (p > 0 && q > 0) found.push([a0 + --p, b0 + --q]);
          pairs.push(...found.reverse());
          return true;
        }
      }
      return false;
    }

    function stretch(a0, a1, b0, b1) {
      while (a0 < a1 && b0 < b1 && x[a0] === y[b0]) pairs.push([a0++, b0++]);
      const tail = [];
      while (a0 < a1 && b0 < b1 && x[a1 - 1] === y[b1 - 1]) tail.push([--a1, --b1]);
      if (a0 < a1 && b0 < b1 && !myers(a0, a1, b0, b1)) {
        const fixed = anchors(a0, a1, b0, b1);
        if (fixed.length) {
          let [i, j] = [a0, b0];
          for (const [p, q] of fixed) {
            if (p < i || q < j) continue; // taken by the common lines before it
            stretch(i, p, j, q);
            pairs.push([p, q]);
            [i, j] = [p + 1, q + 1];
          }
          stretch(i, a1, j, b1);
        } else unaligned += a1 - a0 + b1 - b0;
      }
      for (let n = tail.length - 1; n >= 0; n -= 1) pairs.push(tail[n]);
    }

    stretch(0, x.length, 0, y.length);
    return { pairs, unaligned };
  }

  /* Rows of the whole difference: {sign: " " | "-" | "+", i, j}; i, j are line indices, -1 where there is none. */
  function difference(a, b, ignoresNames, budget) {
    const { pairs, unaligned } = align(a, b, ignoresNames, budget);
    const rows = [];
    let [i, j, removed, added] = [0, 0, 0, 0];
    const until = (p, q) => {
      for (; i < p; i += 1, removed += 1) rows.push({ sign: "-", i, j: -1 });
      for (; j < q; j += 1, added += 1) rows.push({ sign: "+", i: -1, j });
    };
    for (const [p, q] of pairs) {
      until(p, q);
      rows.push({ sign: " ", i: i++, j: j++ });
    }
    until(a.length, b.length);
    return { rows, removed, added, equal: pairs.length, unaligned };
  }

  /* The same with long equal stretches as one row {fold: [first, last]} of `rows`, unless opened. */
  function folded(rows, open, context = 4) {
    const out = [];
    for (let n = 0; n < rows.length;) {
      let end = n;
      while (end < rows.length && rows[end].sign === " ") end += 1;
      const first = n === 0 ? 0 : n + context;
      const last = end === rows.length ? end : end - context;
      if (end > n && last - first > 3 && !open.has(first)) {
        for (; n < first; n += 1) out.push(rows[n]);
        out.push({ fold: [first, last - 1] });
        for (n = last; n < end; n += 1) out.push(rows[n]);
      } else for (; n < end; n += 1) out.push(rows[n]);
      for (; n < rows.length && rows[n].sign !== " "; n += 1) out.push(rows[n]);
    }
    return out;
  }

  return { difference, folded, plain };
};

/* The view of it: the same stage of A and of B. */
window.WorkbenchParts.compared = (kit, lines) => {
  const { el } = kit;
  const { MACHINE, isSource, stageText, whole, button, coloured, load, addressOf, VirtualLines, message } = lines;
  const { difference, folded } = window.WorkbenchParts.diff();

  class Compared {
    constructor(panes) {
      this.panes = panes;
      this.select = el("select", { class: "wb-select wb-stagepick", "aria-label": "Stage to compare", onchange: () => { this.stage = this.select.value; this.update(); } });
      this.ignores = el("input", { type: "checkbox", checked: true, onchange: () => this.update() });
      this.count = el("span", { class: "wb-muted wb-codecount wb-diffcount", role: "status" });
      this.steps = [button("‹", "Previous change", () => this.step(-1)), button("›", "Next change", () => this.step(1))];
      this.view = new VirtualLines("Difference of A and B", (i) => this.line(i), () => {});
      this.view.marks = () => ["a", "b"].map((colour) => ({ colour, lines: this.lines[colour], left: colour === "a" ? 0 : 5, width: 5 }));
      this.lines = { a: [], b: [] };
      this.hold = el("div", { class: "wb-codehold" });
      this.node = el("div", { class: "wb-codepane wb-diffpane" }, el("div", { class: "wb-codehead" }, this.select,
        el("label", { class: "wb-diffswitch" }, this.ignores, "ignore registers, values and addresses"), this.count, ...this.steps), this.hold);
      this.view.node.addEventListener("click", (event) => {
        const node = event.target.closest(".wb-difffold");
        if (node) this.unfold(Number(node.dataset.i));
      });
    }

    async update() {
      const [a, b] = this.panes.subjects;
      const common = a.stages.filter((stage) => b.stages.includes(stage));
      if (!common.includes(this.stage)) this.stage = common.find((s) => MACHINE.includes(s)) || common[common.length - 1];
      this.select.replaceChildren(...common.map((stage) => el("option", { value: stage, text: stageText(stage) })));
      this.select.value = this.stage;
      const wanted = `${a.key} ${b.key} ${this.stage} ${this.ignores.checked}`;
      if (wanted === this.wanted) { this.view.later(); return; }
      this.wanted = wanted;
      this.count.textContent = "";
      this.hold.replaceChildren(message("Comparing", ""));
      try {
        const urls = [a, b].map((s) => addressOf(this.panes.root, s.key, this.stage));
        const found = await Promise.all(urls.map(load));
        await new Promise((resolve) => { setTimeout(resolve, 0); });
        if (this.wanted !== wanted) return;
        this.show(found);
      } catch (error) {
        if (this.wanted !== wanted) return;
        this.wanted = null;
        this.hold.replaceChildren(message(`${stageText(this.stage)} could not be fetched`, String(error.message || error), () => this.update()));
      }
    }

    show(found) {
      this.found = found;
      this.result = difference(found[0].lines, found[1].lines, this.ignores.checked && !isSource(this.stage));
      const { removed, added, equal, unaligned } = this.result;
      const large = unaligned ? ` ${whole(unaligned)} lines differ too much to be aligned in time: shown as removed and added.` : "";
      this.count.textContent = removed + added ? `−${whole(removed)} only in A, +${whole(added)} only in B, ${whole(equal)} alike.${large}` : `No difference in ${whole(equal)} lines.`;
      this.count.title = this.count.textContent;
      this.openFolds = new Set();
      this.hold.replaceChildren(this.view.box);
      this.fold();
      this.view.node.scrollTop = 0;
      this.step(1, -1);
    }

    fold() {
      this.rows = folded(this.result.rows, this.openFolds);
      this.changes = [];
      this.lines = { a: [], b: [] };
      this.rows.forEach((row, n) => {
        if (row.fold || row.sign === " ") return;
        this.lines[row.sign === "-" ? "a" : "b"].push(n);
        const before = this.rows[n - 1];
        if (!before || before.fold || before.sign === " ") this.changes.push(n);
      });
      for (const node of this.steps) node.disabled = !this.changes.length;
      this.view.fill(this.rows.length, Math.max(...this.found.map((l) => l.columns)) + 8);
    }

    unfold(n) {
      this.openFolds.add(this.rows[n].fold[0]);
      this.fold();
    }

    step(by, from = null) {
      const [top, bottom] = this.view.range();
      const here = from ?? this.at ?? Math.floor((top + bottom) / 2);
      const next = by > 0 ? this.changes.find((n) => n > here) : this.changes.findLast((n) => n < here);
      this.at = next ?? (by > 0 ? this.changes[0] : this.changes[this.changes.length - 1]);
      if (this.at !== undefined) this.view.show(this.at, true);
    }

    line(n) {
      const row = this.rows[n];
      if (row.fold) {
        const count = row.fold[1] - row.fold[0] + 1;
        return el("div", { class: "wb-codeline wb-difffold" }, el("button", { type: "button", class: "wb-linkbutton", text: `⋯ ${whole(count)} lines alike`, title: "Show them" }));
      }
      const [listing, i] = row.i >= 0 ? [this.found[0], row.i] : [this.found[1], row.j];
      return el("div", { class: "wb-codeline", "data-sign": row.sign === " " ? null : row.sign, "data-kind": listing.kind(i) || null, "data-loop": listing.inLoop[i] ? "" : null },
        el("span", { class: "wb-lineno", text: row.i >= 0 ? String(row.i + 1) : "" }), el("span", { class: "wb-lineno", text: row.j >= 0 ? String(row.j + 1) : "" }),
        el("span", { class: "wb-diffsign", text: row.sign.replace("-", "−") }), coloured(listing, i));
    }
  }

  return Compared;
};
