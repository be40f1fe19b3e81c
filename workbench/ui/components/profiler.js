"use strict";
/* The profiler tab: sweep, tables of a trace, stored runs. Searching, sorting and folding never ask the server. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.profiler = (kit) => {
  const { P, CONFIG, Panel, el, css, themed, number, heading, focus } = kit;
  const { csv } = window.WorkbenchParts.table(kit);

  const scaled = (steps, last) => (value) => {
    const [size, unit] = steps.find(([s]) => Math.abs(value) >= s) || [1, last];
    return size === 1 ? `${Math.round(value).toLocaleString("en")} ${unit}` : `${number(value / size)} ${unit}`;
  };
  const time = scaled([[1e9, "s"], [1e6, "ms"], [1e3, "µs"]], "ns");
  const bytes = scaled([[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]], "B");
  const whole = (value) => value.toLocaleString("en");
  const percent = (value) => (value >= 0.99995 ? "100 %" : `${number(100 * value)} %`);
  const FORMATS = {
    text: String, hidden: String, int: whole, number, ns: time, bytes, share: percent, bar: number,
    check: (value) => `✓ ${number(value, 2)}`,
  };
  const BARS = new Set(["ns", "share", "bar"]); // and what the column says
  const colour = (token) => `var(--wb-${token.slice(1)})`;
  const isText = (column) => column.kind === "text" || column.kind === "hidden";
  const valueOf = (cell) => (cell !== null && typeof cell === "object" && !Array.isArray(cell) ? cell.value : cell) ?? null;
  const orderOf = (cell) => (cell !== null && typeof cell === "object" && cell.order !== undefined ? cell.order : valueOf(cell));

  function save(name, columns, rows) {
    const file = columns.filter((c) => c.kind !== "stack").map((c) => ({ ...c, unit: c.kind === "ns" ? "ns" : c.kind === "bytes" ? "B" : c.unit }));
    const cells = rows.map((row) => ({ cells: Object.fromEntries(columns.map((c, i) => [c.key, cellOf(row, c, i)])) }));
    const url = URL.createObjectURL(new Blob([csv(file, cells)], { type: "text/csv" }));
    el("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }
  /* Large tables come as arrays in the columns' order, small ones as cells by key. */
  const cellOf = (row, column, i) => (Array.isArray(row) ? row[i] : row.cells[column.key]) ?? null;

  const quiet = (event) => { if (event.key === "Escape") event.stopPropagation(); }; // Esc here must not clear the page's focus

  function searchBox(label, onInput) {
    const input = el("input", {
      type: "search", class: "wb-search", placeholder: label, "aria-label": label,
      oninput: () => onInput(input.value),
      onkeydown: (event) => {
        quiet(event);
        if (event.key === "Escape" && input.value) { input.value = ""; onInput(""); }
      },
    });
    return input;
  }

  function segmented(label, items, current, onChoose) {
    const node = el("div", { class: "wb-segmented", role: "radiogroup", "aria-label": label });
    node.append(...items.map((item) => el("button", {
      type: "button", role: "radio", "aria-checked": String(item.key === current), "data-key": item.key, text: item.text, title: item.tip,
      onclick: () => {
        for (const child of node.children) child.setAttribute("aria-checked", String(child.dataset.key === String(item.key)));
        onChoose(item.key);
      },
    })));
    return node;
  }

  /* One table: sorted by any column (siblings within their parent), searched, folded below a depth. */
  class Grid {
    constructor(label, onStage) {
      this.onStage = onStage;
      this.sorts = {};
      this.needle = "";
      this.open = new Map(); // path -> whether its children show, where the reader said so
      this.depth = 2;
      this.body = el("tbody");
      this.head = el("tr");
      this.node = el("div", { class: "wb-scroller", tabindex: "0", role: "region", "aria-label": label },
        el("table", { class: "wb-data wb-grid" }, el("thead", {}, this.head), this.body));
    }

    show(spec) {
      this.spec = spec;
      this.columns = spec.columns.filter((c) => !c.hidden && c.kind !== "hidden");
      if (!(spec.key in this.sorts)) this.sorts[spec.key] = spec.sort ? { key: spec.sort, down: true } : null;
      this.head.replaceChildren(...this.columns.map((column) => el("th", { scope: "col", "data-key": column.key, class: isText(column) || column.kind === "stack" ? "" : "wb-number" },
        el(column.kind === "stack" ? "span" : "button", {
          type: column.kind === "stack" ? null : "button", class: column.kind === "stack" ? "wb-columnhead" : null, title: column.tip,
          onclick: column.kind === "stack" ? undefined : () => this.sortBy(column),
        }, el("span", { text: column.text }), column.unit ? el("span", { class: "wb-unit", text: column.unit }) : null))));
      const most = (c, i) => Math.max(0, ...spec.rows.map((row) => Number(valueOf(cellOf(row, c, i))) || 0));
      this.most = Object.fromEntries(spec.columns.map((c, i) => [c.key, c.bar ?? BARS.has(c.kind) ? most(c, i) : 0]));
      const duration = spec.columns.findIndex((c) => c.key === "duration");
      if (spec.parts) this.longest = Math.max(1, ...spec.rows.map((row) => Math.max(row[duration], row[2].reduce((a, b) => a + b, 0))));
      this.tree();
      this.fill();
    }

    tree() {
      const { rows, levels, stages, blocks, columns } = this.spec;
      const path = columns.findIndex((c) => c.key === "path");
      this.roots = [];
      const stack = [];
      rows.forEach((row, i) => {
        const level = levels ? levels[i] : 0;
        const item = { row, level, stage: stages ? stages[i] : 0, block: blocks ? blocks[i] : 0, key: path < 0 ? String(i) : row[path], children: [] };
        while (stack.length && stack[stack.length - 1].level >= level) stack.pop();
        (stack.length ? stack[stack.length - 1].children : this.roots).push(item);
        stack.push(item);
      });
      this.isTree = !!levels;
    }

    sortBy(column) {
      const old = this.sorts[this.spec.key];
      const down = !isText(column); // of a number the largest first
      this.sorts[this.spec.key] = old && old.key === column.key ? (old.down === down ? { key: column.key, down: !down } : null) : { key: column.key, down };
      this.fill();
    }

    ordered(items) {
      const sort = this.sorts[this.spec.key];
      const i = sort ? this.spec.columns.findIndex((c) => c.key === sort.key) : -1;
      if (i < 0) return items;
      const column = this.spec.columns[i];
      const sign = sort.down ? -1 : 1;
      return items.slice().sort((left, right) => {
        const [a, b] = [left, right].map((item) => orderOf(cellOf(item.row, column, i)));
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
      });
    }

    matches(item) {
      const texts = this.spec.columns.map((c, i) => (isText(c) ? String(valueOf(cellOf(item.row, c, i)) ?? "") : ""));
      return texts.some((text) => text.toLowerCase().includes(this.needle));
    }

    isOpen(item) {
      return this.open.get(item.key) ?? item.level < this.depth;
    }

    visible() {
      const out = [];
      const found = (item) => this.matches(item) || item.children.some(found);
      const walk = (items) => {
        for (const item of this.ordered(items)) {
          if (this.needle && !found(item)) continue;
          out.push(item);
          if (this.needle || this.isOpen(item)) walk(item.children);
        }
      };
      walk(this.roots);
      return out;
    }

    fill() {
      const sort = this.sorts[this.spec.key];
      for (const th of this.head.children) {
        if (sort && th.dataset.key === sort.key) th.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
        else th.removeAttribute("aria-sort");
      }
      this.shown = this.visible();
      this.body.replaceChildren(...this.shown.map((item) => this.rowNode(item)));
      if (!this.shown.length) this.body.append(el("tr", {}, el("td", { colspan: this.columns.length, class: "wb-muted", text: this.needle ? `No row has “${this.needle}”.` : "No rows." })));
      this.mark(this.stage, this.block);
    }

    /* Rows of the view's stage, and in it those of the block in focus. */
    mark(stage, block) {
      this.stage = stage;
      this.block = block;
      this.shown.forEach((item, i) => {
        const { classList } = this.body.children[i];
        const isInside = !!stage && item.stage === stage;
        classList.toggle("wb-instage", isInside);
        classList.toggle("wb-inblock", isInside && !!block && item.block === block);
      });
    }

    rowNode(item) {
      const { row } = item;
      const node = el("tr", { class: [row.tone ? `wb-row-${row.tone}` : "", row.faint ? "wb-faint" : ""].join(" ").trim(), title: row.note });
      node.append(...this.columns.map((column, n) => {
        const i = this.spec.columns.indexOf(column);
        return n ? this.cell(row, column, i) : this.first(item, column, i);
      }));
      return node;
    }

    first(item, column, i) {
      const cell = cellOf(item.row, column, i);
      const text = String(valueOf(cell) ?? "");
      const box = el("div", { class: "wb-rowhead" });
      if (this.isTree) {
        box.style.paddingLeft = `${14 * item.level}px`;
        const open = this.needle ? true : this.isOpen(item);
        box.append(el("button", {
          type: "button", class: "wb-twist", text: item.children.length ? (open ? "▾" : "▸") : "", disabled: !item.children.length,
          "aria-expanded": item.children.length ? String(open) : null, "aria-label": `${open ? "Fold" : "Unfold"} ${text}`,
          onclick: () => { this.open.set(item.key, !open); this.fill(); },
        }));
      }
      const tip = (cell && cell.tip) || (this.isTree && item.key) || text;
      box.append(el("span", { class: "wb-rowname wb-longname", text, title: tip }));
      if (item.stage && item.level && this.onStage) {
        const where = item.block ? `stage ${item.stage}, block ${item.block}` : `stage ${item.stage}`;
        box.append(el("button", {
          type: "button", class: "wb-stagechip", text: where, title: `Show ${where} in every panel`, onclick: () => this.onStage(item.stage, item.block),
        }));
      }
      return el("th", { scope: "row" }, box);
    }

    cell(row, column, i) {
      const cell = cellOf(row, column, i);
      if (column.kind === "stack") return this.stack(row, cell);
      const value = valueOf(cell);
      const given = cell !== null && typeof cell === "object" ? cell : {};
      const text = given.text ?? (value === null ? "–" : FORMATS[column.kind](value));
      const exact = column.kind === "ns" && value !== null ? `${whole(Math.round(value))} ns` : value === null || isText(column) ? text : String(value);
      const node = el("td", { class: isText(column) ? "wb-longname" : "wb-number", text, title: given.tip || exact });
      if (value === null) node.classList.add("wb-muted");
      if (column.kind === "check" && value !== null) node.classList.add("wb-checked");
      if (this.most[column.key] && value !== null) {
        node.classList.add("wb-cellbar");
        node.style.setProperty("--wb-share", `${(100 * value) / this.most[column.key]}%`);
      }
      return node;
    }

    stack(row, values) {
      const parts = this.spec.parts.map((part, i) => {
        const piece = el("i", { title: `${part.text}: ${time(values[i])}` });
        piece.style.width = `${(100 * values[i]) / this.longest}%`;
        piece.style.background = colour(part.colour);
        return piece;
      });
      const words = this.spec.parts.map((part, i) => `${part.text} ${time(values[i])}`).join(", ");
      return el("td", { class: "wb-stackcell" }, el("div", { class: "wb-stack", role: "img", "aria-label": words }, ...parts));
    }
  }

  /* A Plotly figure that keeps its node between updates. */
  class Chart {
    constructor() {
      this.plot = el("div", { class: "wb-chart", role: "img" });
      this.node = el("div", { class: "wb-chartbox" });
      this.observer = new ResizeObserver(() => this.draw());
      this.observer.observe(this.plot);
    }

    update(spec) {
      this.spec = spec;
      this.plot.setAttribute("aria-label", spec.alt);
      this.node.replaceChildren(...[heading(spec), this.plot].filter(Boolean));
      this.draw();
    }

    draw() {
      if (!this.spec || !this.plot.clientWidth) return;
      const layout = themed(this.spec.figure.layout);
      layout.width = this.plot.clientWidth;
      layout.height = this.plot.clientHeight;
      layout.hoverlabel = { bgcolor: css("--wb-paper"), bordercolor: css("--wb-line"), font: { color: css("--wb-ink"), size: 11 } };
      P.react(this.plot, themed(this.spec.figure.data), layout, CONFIG);
    }
  }

  /* Bars from zero with their spread; a point without a time says why. */
  function barGroups(spec) {
    const rows = spec.rows.map((row) => el("div", { class: "wb-profgroup" },
      el("span", { class: "wb-profname", text: row.text, title: row.text }),
      el("div", {}, ...row.bars.map((bar) => {
        const track = el("span", { class: "wb-proftrack" });
        if (bar.share !== null) {
          const fill = el("i", { class: `wb-fill-${bar.tone}` });
          fill.style.width = `${100 * bar.share}%`;
          const spread = el("b", { class: "wb-whisker" });
          spread.style.left = `${100 * bar.low}%`;
          spread.style.width = `${100 * (bar.high - bar.low)}%`;
          track.append(fill, spread);
        } else track.append(el("span", { class: "wb-why", text: bar.text }));
        return el("div", { class: "wb-profbar", title: bar.tip }, track, el("span", { class: "wb-number", text: bar.share === null ? "–" : bar.text }));
      }))));
    return el("div", { class: "wb-chartbox" }, heading(spec), el("div", { class: "wb-profbars" }, ...rows));
  }

  const noteNode = (notes) => {
    const text = [...new Set(notes || [])].join(" ");
    return text ? el("p", { class: "wb-note", text, title: text }) : null;
  };

  class ProfilerPanel extends Panel {
    constructor(element, props, trigger) {
      super(element, props, trigger);
      this.charts = new Map();
    }

    chartOf(spec) {
      if (spec.kind === "bars") return barGroups(spec);
      if (!this.charts.has(spec.key)) this.charts.set(spec.key, new Chart());
      const chart = this.charts.get(spec.key);
      requestAnimationFrame(() => chart.update(spec)); // once it stands in the page and has a size
      chart.update(spec);
      return chart.node;
    }

    csvButton(onClick) {
      this.badges.append(el("button", { type: "button", class: "wb-linkbutton wb-save", text: "CSV", title: "Download the table with exact values", onclick: onClick }));
    }

    themeChanged() {
      for (const chart of this.charts.values()) chart.draw();
    }

    dispose() {
      for (const chart of this.charts.values()) chart.observer.disconnect();
      super.dispose();
    }
  }

  class SweepLab extends ProfilerPanel {
    build() {
      const p = this.payload;
      this.body.classList.add("wb-profbody");
      this.grid ||= new Grid("Points of the sweep");
      const charts = el("div", { class: "wb-profcharts", "data-n": p.charts.length }, ...p.charts.map((spec) => this.chartOf(spec)));
      this.card ||= el("details", { class: "wb-card" });
      const isOpen = this.card.open;
      const facts = p.environment.flatMap(([key, value]) => [el("dt", { text: key }), el("dd", { text: value })]);
      this.card.replaceChildren(el("summary", { text: p.environment_title }), el("dl", {}, ...facts));
      this.card.open = isOpen;
      const top = this.grid.node.scrollTop;
      this.body.replaceChildren(...[charts, this.grid.node, this.card, noteNode(p.notes)].filter(Boolean));
      this.grid.show({ key: "points", columns: p.columns, rows: p.rows, sort: null });
      this.grid.node.scrollTop = top;
      this.csvButton(() => save(p.csv_name, p.columns, p.rows));
    }
  }

  class TraceLab extends ProfilerPanel {
    build() {
      const p = this.payload;
      this.body.classList.add("wb-profbody");
      this.grid ||= new Grid("Table of the trace", (stage, block) => this.pickStage(stage, block));
      this.search ||= searchBox("Search", (text) => {
        this.grid.needle = text.trim().toLowerCase();
        this.grid.fill();
        this.say();
      });
      this.count ||= el("span", { class: "wb-muted wb-count", role: "status" });
      if (!p.tables.some((t) => t.key === this.table)) this.table = p.tables[0].key;
      this.extra ||= el("div", { class: "wb-gridextra" });
      const tabs = segmented("Table", p.tables.map((t) => ({ key: t.key, text: t.text })), this.table, (key) => { this.table = key; this.showTable(); });
      this.body.replaceChildren(...[el("div", { class: "wb-profbar-top" }, tabs, this.search, this.count, this.extra), this.grid.node, noteNode(p.notes)].filter(Boolean));
      this.showTable();
      this.csvButton(() => {
        const table = this.spec();
        save(`trace-${table.key}.csv`, table.columns, table.rows);
      });
    }

    spec() {
      return this.payload.tables.find((t) => t.key === this.table);
    }

    showTable() {
      const spec = this.spec();
      this.node.dataset.table = spec.key;
      this.grid.node.scrollTop = 0;
      this.grid.show(spec);
      this.markStage();
      this.extra.replaceChildren(...(spec.parts ? kit.legend(spec.parts) : spec.levels ? [this.depths(spec)] : []));
      this.say();
    }

    depths(spec) {
      const deepest = Math.max(0, ...spec.levels);
      const items = [];
      for (let d = 1; d < deepest; d += 1) items.push({ key: d, text: String(d), tip: `Unfold down to depth ${d}` });
      items.push({ key: deepest, text: "all", tip: "Unfold everything" });
      if (this.grid.depth > deepest) this.grid.depth = deepest;
      return el("div", { class: "wb-depths" }, el("span", { class: "wb-muted", text: "depth" }), segmented("Depth", items, this.grid.depth, (depth) => {
        this.grid.depth = depth;
        this.grid.open.clear();
        this.grid.fill();
        this.say();
      }));
    }

    say() {
      const { rows, note } = this.spec();
      const n = this.grid.shown.length;
      this.count.textContent = [n < rows.length ? `${whole(n)} of ${whole(rows.length)} rows` : `${whole(n)} rows`, note].filter(Boolean).join(". ");
      this.count.title = this.count.textContent;
    }

    markStage() {
      const now = focus();
      if (this.grid && this.grid.spec) this.grid.mark(now ? now.stage : this.payload.stage, this.payload.block);
    }
  }

  class RunsLab extends ProfilerPanel {
    constructor(element, props, trigger) {
      super(element, props, trigger);
      this.needle = "";
      this.group = "all";
    }

    build() {
      const p = this.payload;
      this.body.classList.add("wb-profbody");
      const given = (p.selected || []).join();
      if (given !== this.given) [this.a, this.b] = p.selected; // what the server compares; else the reader's own picks stay
      this.given = given;
      this.search ||= searchBox("Search runs", (text) => { this.needle = text.trim().toLowerCase(); this.fillRuns(); });
      this.compareButton = el("button", { type: "button", class: "wb-button wb-strong", text: "Compare A with B", onclick: () => this.trigger("choose", { do: "compare", a: this.a, b: this.b }) });
      this.why = el("span", { class: "wb-muted wb-count", role: "status" });
      this.list = el("tbody");
      const titles = ["run", "kind", "what", "device", "made", "size", ""];
      const scroller = el("div", { class: "wb-scroller wb-runlist", tabindex: "0", role: "region", "aria-label": "Stored runs" },
        el("table", { class: "wb-data wb-grid" }, el("thead", {}, el("tr", {}, ...titles.map((text) => el("th", { scope: "col" }, el("span", { class: "wb-columnhead", text }))))), this.list));
      const top = el("div", { class: "wb-profbar-top" }, this.search, this.compareButton, this.why);
      this.body.replaceChildren(...[top, scroller, p.comparison ? this.comparison(p.comparison) : null, noteNode(p.notes)].filter(Boolean));
      this.fillRuns();
    }

    fillRuns() {
      const has = (run) => [run.id, run.name, run.kind, run.title, run.device, run.when].some((text) => text.toLowerCase().includes(this.needle));
      const runs = this.payload.runs.filter(has);
      this.list.replaceChildren(...runs.map((run) => this.runRow(run)));
      if (!runs.length) this.list.append(el("tr", {}, el("td", { colspan: 7, class: "wb-muted", text: this.needle ? `No run has “${this.needle}”.` : "No run is stored." })));
      const [a, b] = [this.a, this.b].map((id) => this.payload.runs.find((run) => run.id === id));
      const why = !a || !b ? "Pick a run as A and another as B." : a.id === b.id ? "A and B are the same run." : a.kind !== b.kind ? "A sweep and a trace cannot be compared." : "";
      this.compareButton.disabled = !!why;
      this.why.textContent = why || `${b.name || b.id} beside ${a.name || a.id}`;
    }

    runRow(run) {
      const slots = ["a", "b"].map((slot) => el("button", {
        type: "button", class: "wb-slot wb-slot-run", text: slot.toUpperCase(), "aria-pressed": String(this[slot] === run.id),
        "aria-label": `Use ${run.name || run.id} as run ${slot.toUpperCase()}`, title: `Use as run ${slot.toUpperCase()}`,
        onclick: () => { this[slot] = this[slot] === run.id ? undefined : run.id; this.fillRuns(); },
      }));
      const name = this.editing === run.id ? this.nameInput(run) : el("span", { class: `wb-rowname wb-longname${run.name ? "" : " wb-muted"}`, text: run.name || run.id, title: run.id });
      const act = (text, tip, onclick) => el("button", { type: "button", class: "wb-linkbutton wb-act", text, title: tip, "aria-label": `${text} ${run.name || run.id}`, onclick });
      const remove = act("Delete", "Remove the run from the store", () => {
        if (this.doomed === run.id) { this.doomed = null; this.trigger("choose", { do: "delete", id: run.id }); return; }
        this.doomed = run.id;
        remove.textContent = "Really delete?";
        remove.classList.add("wb-doomed");
        setTimeout(() => { if (this.doomed === run.id) { this.doomed = null; remove.textContent = "Delete"; remove.classList.remove("wb-doomed"); } }, 4000);
      });
      return el("tr", { "data-id": run.id },
        el("th", { scope: "row" }, el("div", { class: "wb-rowhead" }, el("span", { class: "wb-slots" }, ...slots), name)),
        el("td", { text: run.kind }), el("td", { class: "wb-longname", text: run.title, title: run.title }), el("td", { class: "wb-longname wb-devicename", text: run.device, title: run.device }),
        el("td", { text: run.when, title: run.created }), el("td", { class: "wb-number", text: run.size, title: `${whole(run.bytes)} B` }),
        el("td", { class: "wb-acts" }, act("Rename", "Give the run a name", () => { this.editing = run.id; this.fillRuns(); this.list.querySelector(".wb-nameinput").select(); }),
          act("Export", "Download the run as a file", () => this.trigger("save", { id: run.id })), remove));
    }

    nameInput(run) {
      const done = (name) => {
        if (this.editing !== run.id) return; // leaving the field comes after Enter, too
        this.editing = null;
        if (name !== null && name.trim() !== run.name) this.trigger("choose", { do: "rename", id: run.id, name: name.trim() });
        this.fillRuns();
      };
      const input = el("input", {
        class: "wb-search wb-nameinput", value: run.name, maxlength: "80", "aria-label": `Name of run ${run.id}`,
        onkeydown: (event) => {
          quiet(event);
          if (event.key === "Enter") done(input.value);
          if (event.key === "Escape") done(null);
        },
        onblur: () => done(null),
      });
      return input;
    }

    comparison(c) {
      const rows = el("tbody");
      const place = (value) => 50 + (50 * Math.max(-1, Math.min(1, Math.log(value) / c.reach)));
      const fill = () => rows.replaceChildren(...c.rows.filter((row) => this.group === "all" || row.table === this.group).map((row) => el("tr", { "data-verdict": row.verdict },
        el("th", { scope: "row" }, el("span", { class: "wb-rowname wb-longname", text: row.name, title: `${row.table}: ${row.name}` })),
        el("td", { class: "wb-number", text: row.a_text }), el("td", { class: "wb-number", text: row.b_text }),
        el("td", { class: "wb-forestcell" }, this.whisker(row, place)), el("td", { class: "wb-number", text: row.ratio_text }), el("td", { class: "wb-verdict", text: row.verdict }))));
      const groups = [{ key: "all", text: "all" }, ...c.groups];
      if (!groups.some((g) => g.key === this.group)) this.group = "all";
      const axis = el("div", { class: "wb-forestaxis" }, ...c.ticks.map((tick) => {
        const node = el("span", { text: tick.text });
        node.style.left = `${50 + (50 * tick.at) / c.reach}%`;
        return node;
      }));
      const heads = [["what"], [`A ${c.a}`, "wb-number"], [`B ${c.b}`, "wb-number"], ["B : A, 95 % interval"], ["ratio", "wb-number"], ["verdict"]];
      const head = heads.map(([text, kind], i) => el("th", { scope: "col", class: kind || "" }, el("span", { class: "wb-columnhead wb-longname", text, title: text }), i === 3 ? axis : null));
      fill();
      const table = el("div", { class: "wb-scroller", tabindex: "0", role: "region", "aria-label": "Comparison" },
        el("table", { class: "wb-data wb-grid wb-forest" }, el("thead", {}, el("tr", {}, ...head)), rows));
      const title = el("div", { class: "wb-profbar-top" }, el("b", { text: `${c.b} beside ${c.a}` }),
        segmented("Rows", groups, this.group, (key) => { this.group = key; fill(); }),
        el("button", { type: "button", class: "wb-linkbutton wb-save", text: "CSV", title: "Download the comparison with exact values", onclick: () => save(c.csv_name, c.columns, c.rows.map((row) => ({ cells: row }))) }),
        c.note ? el("span", { class: "wb-muted", text: c.note }) : null);
      const side = this.payload.overlay ? this.chartOf(this.payload.overlay) : null;
      return el("div", { class: "wb-comparison" }, title, el("div", { class: "wb-profcompare", "data-overlay": String(!!side) }, table, side));
    }

    whisker(row, place) {
      const box = el("div", { class: "wb-forestrow" }, el("i", { class: "wb-one" }));
      if (row.ratio === null) return box;
      if (row.low !== null && row.high !== null) {
        const line = el("i", { class: "wb-interval" });
        line.style.left = `${place(row.low)}%`;
        line.style.width = `${place(row.high) - place(row.low)}%`;
        box.append(line);
      }
      const dot = el("i", { class: "wb-ratiodot" });
      dot.style.left = `${place(row.ratio)}%`;
      box.append(dot);
      box.title = `${row.name}: ${row.ratio_text}, ${row.verdict}`;
      return box;
    }
  }

  const timeline = window.WorkbenchParts.timeline({ ...kit, ProfilerPanel, searchBox, quiet, time, bytes, colour, noteNode });
  return { KINDS: { profsweep: SweepLab, proftrace: TraceLab, profruns: RunsLab, ...timeline.KINDS }, time, bytes };
};
