"use strict";
/* Floors of the cost model in the browser, and the map of the sizes and batches where scheme A pays. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.floors = (kit) => {
  const { el, number } = kit;
  const VALUES = ["activations", "bytes", "once", "flops", "fmas", "exps"]; // as in kernel_results.py
  const LAUNCH = 3; // index among the limiters
  const UNITS = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]];
  const unitOf = (seconds) => UNITS.find(([size]) => seconds >= size) || UNITS[3];
  const time = (seconds) => { const [size, unit] = unitOf(seconds); return `${number(seconds / size)} ${unit}`; };
  const SI = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const si = (value) => { const [size, letter] = SI.find(([s]) => value >= s) || [1, ""]; return `${number(value / size)} ${letter}`; };
  const whole = (value) => Math.round(value).toLocaleString("en");
  const sum = (values) => values.reduce((a, b) => a + b, 0);

  /* Costs and floors of one scheme in every stage: counts of one scan, times in seconds. */
  function floorsOf(p, scheme, rates, s) {
    const [nStages, nSizes] = [p.stages.length, p.sizes.length];
    const nPasses = p.values[scheme].length / (nSizes * nStages * VALUES.length);
    const used = s.passes === "train" ? nPasses : 1;
    const size = p.sizes.indexOf(s.size);
    const width = p.dtypes.find((d) => d.key === s.dtype).width;
    const { depth } = p.passes.find((x) => x.key === s.passes);
    return p.stages.map((_, stage) => {
      const v = Object.fromEntries(VALUES.map((name, i) => {
        let total = 0;
        for (let pass = 0; pass < used; pass += 1) total += p.values[scheme][((size * nStages + stage) * nPasses + pass) * VALUES.length + i];
        return [name, total];
      }));
      const [sequences, length] = [p.sequences[scheme][size * nStages + stage], p.lengths[scheme][size * nStages + stage]];
      const bytes = s.batch * (v.activations * width + v.bytes) + v.once;
      const [flops, fmas, exps] = [v.flops * s.batch, v.fmas * s.batch, v.exps * s.batch];
      const parts = [bytes / rates.memory, fmas / rates.fma, exps / rates.exp];
      const floor = Math.max(...parts);
      return {
        sequences, length, tokens: s.batch * sequences * length, depth: length * depth, bytes, flops, fmas, exps, parts, floor,
        least: Math.max(floor, rates.launch), limiter: floor < rates.launch ? LAUNCH : parts.indexOf(floor),
      };
    });
  }

  /* Sum over the scans of a network, each stage times its blocks. */
  const networkOf = (p, stages, value) => sum(stages.map((stage, j) => p.stages[j].blocks * value(stage)));

  class PayMap {
    constructor(onPick) {
      this.onPick = onPick;
      this.head = el("div", { class: "wb-heading" });
      this.grid = el("div", { class: "wb-pay", role: "grid", "aria-label": "Time of scheme B over that of scheme A by input size and batch" });
      this.foot = el("div", { class: "wb-payfoot" });
      this.node = el("div", { class: "wb-roofright" }, this.head, this.grid, this.foot);
    }

    /* Cells are made once; a setting only colours them. Rows are batches, the largest on top. */
    build(p) {
      this.payload = p;
      this.grid.style.setProperty("--wb-columns", p.sizes.length);
      const rows = p.batches.slice().reverse().map((batch) => el("div", { class: "wb-payrow", role: "row" },
        el("span", { class: "wb-payhead wb-number", role: "rowheader", text: String(batch) }),
        ...p.sizes.map((size) => el("button", {
          type: "button", class: "wb-paycell", role: "gridcell", tabindex: "-1", "data-size": size, "data-batch": batch,
          onclick: () => this.onPick(size, batch),
        }, el("span", {}), el("i", {})))));
      const foot = el("div", { class: "wb-payrow", role: "row" }, el("span", { class: "wb-payhead" }), ...p.sizes.map((size) => el("span", { class: "wb-payhead", role: "columnheader", text: String(size) })));
      this.grid.replaceChildren(...rows, foot);
      this.cells = [...this.grid.querySelectorAll(".wb-paycell")];
      this.grid.onkeydown = (event) => {
        const move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: p.sizes.length, ArrowUp: -p.sizes.length }[event.key];
        const to = this.cells[this.cells.indexOf(event.target) + move];
        if (!move || !to) return;
        event.preventDefault();
        to.focus();
      };
    }

    paint(setting, rates, a, b) {
      const p = this.payload;
      const ratios = this.cells.map((cell) => {
        const s = { ...setting, size: Number(cell.dataset.size), batch: Number(cell.dataset.batch) };
        const [mine, theirs] = [a, b].map((slot) => floorsOf(p, slot.i, rates, s));
        const [ta, tb] = [mine, theirs].map((stages) => networkOf(p, stages, (x) => x.least));
        const longest = mine.reduce((best, x, j) => (x.least * p.stages[j].blocks > mine[best].least * p.stages[best].blocks ? j : best), 0);
        return { ratio: tb / ta, limiter: mine[longest].limiter, ta, tb };
      });
      const far = Math.max(2, ...ratios.map(({ ratio }) => Math.max(ratio, 1 / ratio)));
      let current = null;
      this.cells.forEach((cell, i) => {
        const { ratio, limiter, ta, tb } = ratios[i];
        const isNow = Number(cell.dataset.size) === setting.size && Number(cell.dataset.batch) === setting.batch;
        cell.style.setProperty("--wb-share", String(Math.abs(Math.log(ratio)) / Math.log(far)));
        cell.dataset.side = ratio >= 1 ? "a" : "b";
        cell.dataset.ratio = String(ratio);
        cell.firstChild.textContent = ratio >= 9.95 ? String(Math.round(ratio)) : number(ratio, 2);
        cell.lastChild.textContent = p.limiters[limiter].letter;
        cell.setAttribute("aria-selected", String(isNow));
        cell.title = `${cell.dataset.size} px, batch ${cell.dataset.batch}: ${b.short} ${time(tb)}, ${a.short} ${time(ta)}, limited by ${p.limiters[limiter].words}`;
        cell.setAttribute("aria-label", `${cell.title}, ${number(ratio)} times`);
        cell.tabIndex = -1;
        if (isNow) current = cell;
      });
      (current || this.cells[0]).tabIndex = 0;
      const isLower = ratios.some(({ ratio }) => ratio < 0.995);
      this.head.replaceChildren(el("span", { text: `Where ${a.short} pays: time of ${b.inline} over its own`, title: "By the model, launches included; the letter is the limiter of scheme A" }), el("span", { class: "wb-legend", text: "batch ↑  input px →" }));
      const bar = el("span", { class: "wb-paybar", "data-two": String(isLower) });
      this.foot.replaceChildren(
        el("span", { class: "wb-payscale" }, el("span", { text: isLower ? `1/${number(far, 2)}` : "1" }), bar, el("span", { text: number(far, 2) })),
        ...p.limiters.map((x) => el("span", { class: "wb-legend" }, el("b", { text: x.letter }), document.createTextNode(` ${x.key}`))),
      );
    }
  }

  return { LAUNCH, floorsOf, time, si, unitOf, whole, sum, networkOf, PayMap };
};
